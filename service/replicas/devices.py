"""Which devices there are, found without torch: the parent process asks the CUDA driver itself."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

DRIVER = "libcuda.so.1"
SUCCESS = 0


def resolve_devices(devices: Sequence[str], count: Callable[[], int] | None = None) -> tuple[str, ...]:
    """ "auto" becomes every CUDA device, or the CPU where there is none; other names stay as they are."""
    if tuple(devices) != ("auto",):
        return tuple(devices)
    return tuple(f"cuda:{index}" for index in range((count or num_cuda_devices)())) or ("cpu",)


def num_cuda_devices(driver: str = DRIVER) -> int:
    """0 without a driver or a device. The driver itself honours CUDA_VISIBLE_DEVICES."""
    try:
        cuda = ctypes.CDLL(driver)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if cuda.cuInit(0) != SUCCESS or cuda.cuDeviceGetCount(ctypes.byref(count)) != SUCCESS:
        return 0
    return count.value
