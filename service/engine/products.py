"""Every way to multiply with a weight that torch has on a device, bare: no bias, no activation, no rounding to codes.

For measuring only; what the engine computes with is in linear.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""Of [tokens, in] to [tokens, out]."""
Way = Callable[[Tensor], Product]
"""Makes the product with a weight [out, in]."""


def ways_of(device: torch.device, precision: str) -> Mapping[str, Way]:
    """Every way there is on this device, by name."""
    has_onednn = device.type == "cpu" and torch.backends.mkldnn.is_available()
    match precision:
        case "int8":
            return {"int_mm": _int_mm, "onednn": _onednn_int8} if has_onednn else {"int_mm": _int_mm}
        case "fp8":
            return {"scaled_mm": _scaled_mm}
        case _:
            return {"linear": _linear, "onednn": _onednn} if has_onednn else {"linear": _linear}


def _linear(weight: Tensor) -> Product:
    return lambda hidden: F.linear(hidden, weight)


def _onednn(weight: Tensor) -> Product:
    """The weight in oneDNN's own layout."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return lambda hidden: torch.ops.mkldnn._linear_pointwise(hidden, packed, None, "none", [], "")


def _int_mm(weight: Tensor) -> Product:
    return lambda hidden: torch._int_mm(hidden, weight.t())


def _onednn_int8(weight: Tensor) -> Product:
    """Of unsigned codes, which oneDNN is quicker with."""
    scales, zeros = torch.ones(len(weight)), torch.zeros(len(weight), dtype=torch.int32)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    dtype = torch.bfloat16
    return lambda hidden: torch.ops.onednn.qlinear_pointwise(
        hidden.view(torch.uint8), 1.0, 128, packed, scales, zeros, None, 1.0, 0, dtype, "none", [], ""
    )


def _scaled_mm(weight: Tensor) -> Product:
    one = torch.ones((), device=weight.device)
    return lambda hidden: torch._scaled_mm(hidden, weight.t(), one, one, out_dtype=torch.bfloat16)
