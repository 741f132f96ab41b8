"""The device: its name and precision from the settings, its capabilities and memory, copies, and recorded work."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from service import host
from service.domain import Memory, Quantization
from service.errors import DeviceFailure, OutOfMemory, SettingError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_MIN_CAPABILITIES: dict[Quantization, tuple[int, int]] = {"int8": (8, 0), "fp8": (8, 9)}
"""The compute capability of a GPU that a quantization needs: Ampere for int8, Ada and Hopper for fp8."""

# Without these a CPU computes bfloat16 by converting it to float32, which is slower than float32.
_CPU_BF16_FEATURES = {"avx512_bf16", "amx_bf16", "bf16"}


def resolve_device(name: str) -> torch.device:
    """Parses `cpu`, `cuda` or `cuda:N`; SettingError when there is no such device."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingError(f"device {name!r}: wanted cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise SettingError(f"device {name!r}: wanted cpu, cuda or cuda:N")
    if device.type == "cuda" and (reason := why_no_cuda(torch.__version__, torch.version.cuda, host.cuda_of_driver())):
        raise SettingError(f"device {name!r}: {reason}")
    num_devices = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= num_devices:
        raise SettingError(f"device {name!r}: there are {num_devices} CUDA devices")
    return device


_OLDEST_DRIVERS = {12: "525.60.13", 13: "580.65.06"}
"""For each major version of CUDA, on Linux: NVIDIA's table of minor version compatibility. An older minor version of
the driver's CUDA is enough."""


def why_no_cuda(build: str, needed: str | None, supported: tuple[int, int] | None) -> str | None:
    """Why this build of torch, made for CUDA `needed`, cannot use a driver that supports CUDA `supported`."""
    if needed is None:
        return (
            f"torch {build} is built without CUDA; take another build (make serve TORCH_BUILD=cu126, or the image with "
            "VARIANT=cuda), or --devices cpu"
        )
    major = int(needed.partition(".")[0])
    if supported is None or supported[0] >= major:
        return None
    driver = _OLDEST_DRIVERS.get(major, "of its release notes")
    return (
        f"the NVIDIA driver supports CUDA {supported[0]}.{supported[1]} at most, and torch {build} is built for CUDA "
        f"{needed}, which needs driver {driver} or newer; update the driver, or take the build for CUDA 12 "
        "(TORCH_BUILD=cu126, docs/deployment.md), or --devices cpu"
    )


def resolve_precision(precision: str, device: torch.device) -> str:
    """Replaces `auto` by bfloat16 where the hardware computes in it, else by float32; SettingError when unknown."""
    if precision == "auto":
        has_bf16 = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else _cpu_has_bf16()
        return "bfloat16" if has_bf16 else "float32"
    if precision not in DTYPES:
        raise SettingError(f"precision {precision!r}: wanted auto, {', '.join(DTYPES)}")
    return precision


def check_capability(quantization: Quantization, device: torch.device) -> None:
    """SettingError when the GPU does not support the quantization. Other devices pass."""
    wanted = _MIN_CAPABILITIES.get(quantization)
    if device.type != "cuda" or wanted is None:
        return
    found = torch.cuda.get_device_capability(device)
    if found >= wanted:
        return
    raise SettingError(
        f"quantization {quantization!r}: needs compute capability {wanted[0]}.{wanted[1]}, "
        f"and {device} has {found[0]}.{found[1]}"
    )


def _cpu_has_bf16() -> bool:
    return not _CPU_BF16_FEATURES.isdisjoint(host.cpu_features())


_X86_INT8_DOT = {"avx512_vnni", "avx_vnni", "amx_int8"}
"""The x86 instructions that add the products of 8-bit numbers in 32 bits."""


def has_int8_dot() -> bool:
    """Whether this CPU adds the products of 8-bit numbers in 32 bits. Other architectures than x86 do."""
    features = host.cpu_features()
    is_x86 = any(feature.startswith("sse") for feature in features)
    return not is_x86 or not _X86_INT8_DOT.isdisjoint(features)


def int8_weight_limit() -> float:
    """The largest int8 weight code that this CPU multiplies without error: 127, or 63 on x86 without VNNI.

    Without VNNI, libraries multiply with `vpmaddubsw`, which adds two products of an unsigned and a signed byte in 16
    bits and saturates: 2 * 255 * 127 does not fit, 2 * 255 * 63 does. PyTorch and ONNX Runtime call it `reduce_range`.
    """
    return 127.0 if has_int8_dot() else 63.0


T = TypeVar("T")

_OUT_OF_MEMORY_TEXTS = (
    "can't allocate memory",  # torch, on a CPU
    "std::bad_alloc",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",  # torch, with expandable segments
    "Triton Error [CUDA]: out of memory",  # for the code of a kernel, which is loaded at its first launch
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""These libraries report a lack of memory as a plain RuntimeError with one of these texts."""

_PERMANENT_FAILURE_TEXT = "could not create a primitive"
"""oneDNN raises this when memory for the code that it generates is missing, and does not recover: afterwards it may
fail for every new batch size, even with free memory, or end the process."""


def or_out_of_memory(call: Callable[[], T], device: torch.device) -> T:
    """Returns the result of the call.

    Raises OutOfMemory when memory is missing; the memory of the call is free again then. Raises DeviceFailure when the
    process cannot recover from it.
    """
    try:
        return call()
    except (RuntimeError, MemoryError) as error:
        if _PERMANENT_FAILURE_TEXT in str(error):
            raise DeviceFailure(str(error)) from error
        if not is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
    # Outside of the handler the error is released, and with its traceback the tensors of the forward.
    if device.type == "cuda":
        torch.cuda.empty_cache()
    raise OutOfMemory(reason)


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        text in str(error) for text in _OUT_OF_MEMORY_TEXTS
    )


def device_memory(device: torch.device) -> Memory | None:
    """The memory of a GPU that all processes together have allocated, and its total; None for a CPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return Memory(total - free, total)


def device_guard(device: torch.device) -> AbstractContextManager[object]:
    """Makes the device current in this thread. A thread starts with the first GPU and would allocate memory there."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def to_host(tensor: Tensor) -> Tensor:
    """Starts a copy to the host; it is complete when a `wait_event` that was made afterwards returns."""
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def wait_event(device: torch.device) -> Callable[[], None]:
    """A function that waits for all work that was launched on the device before this call."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    wait: Callable[[], None] = event.synchronize
    return wait


Call = Callable[[], Tensor]
Record = Callable[[Call], Call]
"""Records a call; the returned function repeats its work on the same buffers."""


class CudaRecorder:
    """Records all graphs into one memory pool, because they are replayed one after the other on one stream.

    And on one stream: libraries keep a workspace of megabytes for each that they have worked on.
    """

    def __init__(self) -> None:
        self._pool: Any = None
        self._stream: Any = None

    def __call__(self, call: Call) -> Call:
        self._stream = self._stream or torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            call()  # compiles kernels and sets up libraries, which must not happen while a graph is recorded
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            out = call()
        self._pool = self._pool or graph.pool()
        torch.cuda.current_stream().wait_stream(self._stream)

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay
