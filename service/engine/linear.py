"""Linear maps of the encoder, each in the layout and the arithmetic that its device is quickest in.

Knows no layers: a map takes hidden states [tokens, in] to [tokens, out], alone, with the activation behind it, or with
a residual on top and the norm of that. `choose` says how they are made of what was loaded, or of what was kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self, cast

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from service.domain import Quantization
from service.engine import ops, torch_private
from service.engine.device import check_capability, int8_weight_limit
from service.engine.ops import HALF, Gelu, Norm, quantize_channels, quantize_tokens
from service.errors import SettingError


@dataclass(frozen=True, slots=True)
class Cuda:
    """In the precision of the weights."""

    weight: Tensor
    bias: Tensor

    def __call__(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight, self.bias)

    def activated(self, hidden: Tensor, gelu: Gelu) -> Tensor:
        # cuBLAS has the approximation by tanh only, and computes it with fewer digits than float32 has.
        if gelu == "tanh" and hidden.dtype == torch.bfloat16 and hidden.is_cuda:
            return torch_private.addmm_gelu_tanh(hidden, self.weight, self.bias)
        return F.gelu(self(hidden), approximate=gelu)

    def added(self, hidden: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        return ops.add_norm(self(hidden), residual, norm)


LEAST_TOKENS = 17
"""torch._int_mm takes no fewer on a GPU; here they come in eights."""


@dataclass(frozen=True, slots=True)
class CudaInt8:
    """8-bit weights with a scale per output channel, 8-bit inputs with a scale per token; sums in 32 bits."""

    weight: Tensor  # [out, in] int8
    scales: Tensor  # [out] float32
    bias: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor) -> Self:
        return cls(*quantize_channels(weight), bias)

    def __call__(self, hidden: Tensor) -> Tensor:
        return ops.rescale(*self._sums(hidden), self.scales, self.bias)

    def activated(self, hidden: Tensor, gelu: Gelu) -> Tensor:
        return ops.rescale_gelu(*self._sums(hidden), self.scales, self.bias, gelu)

    def added(self, hidden: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        return ops.rescale_add_norm(*self._sums(hidden), self.scales, self.bias, residual, norm)

    def _sums(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The product of the codes, and the scales of the tokens."""
        codes, scales = ops.quantize_fused(hidden, torch.int8)
        missing = max(0, LEAST_TOKENS - len(codes))
        sums = torch_private.int_mm(F.pad(codes, (0, 0, 0, missing)) if missing else codes, self.weight)
        return sums[: len(codes)], scales


@dataclass(frozen=True, slots=True)
class CudaFp8:
    """Weights and inputs in 8-bit floats (e4m3), scaled per output channel and per token; the kernel scales back, and
    its results are bfloat16 whatever they become afterwards."""

    weight: Tensor  # [out, in] float8_e4m3fn
    scales: Tensor  # [1, out] float32
    bias: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor) -> Self:
        codes, scales = quantize_channels(weight, torch.float8_e4m3fn)
        return cls(codes, scales[None], bias.to(torch.bfloat16))

    def __call__(self, hidden: Tensor) -> Tensor:
        codes, scales = ops.quantize_fused(hidden, torch.float8_e4m3fn)
        return torch_private.scaled_mm(codes, self.weight, scales, self.scales, self.bias).to(hidden.dtype)

    def activated(self, hidden: Tensor, gelu: Gelu) -> Tensor:
        return F.gelu(self(hidden), approximate=gelu)

    def added(self, hidden: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        return ops.add_norm(self(hidden), residual, norm)


class Linear(Protocol):
    """What the encoder asks of a map."""

    @property
    def weight(self) -> Tensor:
        """As the map keeps it; nobody else can read it."""
        ...

    def __call__(self, hidden: Tensor) -> Tensor: ...

    def activated(self, hidden: Tensor, gelu: Gelu) -> Tensor:
        """The GELU of the map."""
        ...

    def added(self, hidden: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        """The map plus `residual`, [tokens, out], and the layer norm of that: the two are one kernel on a GPU."""
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """As it was loaded: weight [out, in], bias [out]. Runs anywhere."""

    weight: Tensor
    bias: Tensor

    def __call__(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight, self.bias)

    def activated(self, hidden: Tensor, gelu: Gelu) -> Tensor:
        return F.gelu(self(hidden), approximate=gelu)

    def added(self, hidden: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        out = self(hidden).add_(residual)
        return out, norm(out)


@dataclass(frozen=True, slots=True)
class OneDnn:
    """oneDNN's blocked layout, reordered once instead of in every call; bias, GELU and residual are added while the
    sums are still in registers, in float32."""

    weight: Tensor  # opaque
    bias: Tensor

    @classmethod
    def of(cls, plain: Plain) -> Self:
        return cls(torch_private.pack(plain.weight), plain.bias)

    def __call__(self, hidden: Tensor) -> Tensor:
        return torch_private.linear(hidden, self.weight, self.bias)

    def activated(self, hidden: Tensor, gelu: Gelu) -> Tensor:
        return torch_private.linear_gelu(hidden, self.weight, self.bias, gelu)

    def added(self, hidden: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        out = torch_private.linear_add(hidden, residual, self.weight, self.bias)
        return out, norm(out)


@dataclass(frozen=True, slots=True)
class OneDnnInt8:
    """8-bit weights with a scale per output channel, 8-bit inputs with a scale per token.

    oneDNN is fast for unsigned inputs only; it subtracts their offset from the sums. On a CPU without VNNI it adds
    pairs of products in 16 bits, so the weights have 7 bits there (see `int8_weight_limit`).
    """

    weight: Tensor  # opaque
    scales: Tensor  # [out] float32
    zeros: Tensor  # [out] int32
    bias: Tensor

    @classmethod
    def of(cls, plain: Plain) -> Self:
        weight, scales = quantize_channels(plain.weight, largest=int8_weight_limit())
        zeros = torch.zeros(len(scales), dtype=torch.int32)
        return cls(torch_private.pack_int8(weight), scales, zeros, plain.bias)

    def __call__(self, hidden: Tensor) -> Tensor:
        codes, scales = quantize_tokens(hidden)
        out = torch_private.linear_int8(codes, HALF, self.weight, self.scales, self.zeros, hidden.dtype)
        return torch.addcmul(self.bias, out.to(hidden.dtype), scales.to(hidden.dtype))

    def activated(self, hidden: Tensor, gelu: Gelu) -> Tensor:
        return F.gelu(self(hidden), approximate=gelu)

    def added(self, hidden: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        out = self(hidden).add_(residual)
        return out, norm(out)


Make = Callable[[Plain], Linear]


def keep(plain: Plain) -> Linear:
    """As it was loaded."""
    return plain


@dataclass(frozen=True, slots=True)
class LinearType:
    """A sort of maps: how one is made of what was loaded, and the class of those that are, all of whose fields are
    tensors."""

    make: Make
    made: Callable[..., Linear]

    def __call__(self, plain: Plain) -> Linear:
        return self.make(plain)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the fields."""
        return tuple(field.name for field in fields(cast("Any", self.made)))


PLAIN = LinearType(keep, Plain)


def choose(device: torch.device, dtype: torch.dtype, quantization: Quantization) -> LinearType:
    """The maps for this device and precision; SettingError when the device does not support the quantization."""
    if device.type == "cpu" and quantization == "none" and not torch_private.has_onednn(dtype):
        return PLAIN
    kind = _KINDS.get((device.type, quantization))
    if kind is None:
        raise SettingError(f"quantization {quantization!r}: not on {device.type}")
    check_capability(quantization, device)
    return kind


_KINDS: dict[tuple[str, Quantization], LinearType] = {
    ("cpu", "none"): LinearType(OneDnn.of, OneDnn),
    ("cpu", "int8"): LinearType(OneDnnInt8.of, OneDnnInt8),
    ("cuda", "none"): LinearType(lambda plain: Cuda(plain.weight, plain.bias), Cuda),
    ("cuda", "int8"): LinearType(lambda plain: CudaInt8.of(plain.weight, plain.bias), CudaInt8),
    ("cuda", "fp8"): LinearType(lambda plain: CudaFp8.of(plain.weight, plain.bias), CudaFp8),
}
