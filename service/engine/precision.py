"""Which number format the weights and the arithmetic take: resolves the settings `device` and `precision`.

Knows the hardware's abilities, not the models.
"""

from __future__ import annotations

import torch

from service import host
from service.domain import Quantization
from service.errors import SettingError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_LEAST_CAPABILITIES: dict[Quantization, tuple[int, int]] = {"int8": (8, 0), "fp8": (8, 9)}
"""Of a GPU: Ampere is the first that is quicker in int8 for what it loses, Ada and Hopper compute in fp8."""

# Without these a CPU computes bfloat16 by widening it, which is slower than float32.
_CPU_ABILITIES = {"avx512_bf16", "amx_bf16", "bf16"}


def resolve_device(name: str) -> torch.device:
    """`cpu`, `cuda` or `cuda:N`; SettingError when there is no such device."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingError(f"device {name!r}: wanted cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise SettingError(f"device {name!r}: wanted cpu, cuda or cuda:N")
    num_devices = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= num_devices:
        raise SettingError(f"device {name!r}: there are {num_devices} CUDA devices")
    return device


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` is bfloat16 where the hardware computes in it, else float32."""
    if precision == "auto":
        has_bf16 = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else _cpu_has_bf16()
        return "bfloat16" if has_bf16 else "float32"
    if precision not in DTYPES:
        raise SettingError(f"precision {precision!r}: wanted auto, {', '.join(DTYPES)}")
    return precision


def check_capability(quantization: Quantization, device: torch.device) -> None:
    """SettingError when the GPU has no arithmetic for it; whatever is no GPU passes."""
    least = _LEAST_CAPABILITIES.get(quantization)
    if device.type != "cuda" or least is None:
        return
    found = torch.cuda.get_device_capability(device)
    if found >= least:
        return
    raise SettingError(
        f"quantization {quantization!r}: needs compute capability {least[0]}.{least[1]}, "
        f"and {device} has {found[0]}.{found[1]}"
    )


def _cpu_has_bf16() -> bool:
    return not _CPU_ABILITIES.isdisjoint(host.cpu_features())
