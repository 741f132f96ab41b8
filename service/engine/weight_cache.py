"""The weights of a checkpoint as the device wants them: converted once, kept in a file, and mapped from then on.

What is mapped takes no memory of a CPU process's own, so the replicas of a machine share it. A cache that cannot be
written is no reason not to serve: then the weights are converted at every start.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from service.checkpoints.checkpoint import Checkpoint
from service.checkpoints.converted import CacheEntry, is_worthwhile, lock
from service.checkpoints.files import require_checksums, weight_files
from service.engine import safetensors_writer
from service.engine.linear import Linear, LinearType
from service.engine.tensor_files import Progress, TensorFiles
from service.engine.weights import Weights, assemble, read_weights
from service.errors import CheckpointError

_TORCH = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"


def numbers_of(opaque: Tensor) -> Tensor:
    """What it holds, in one dimension and in its number format. Valid while `opaque` is there."""
    buffer = (ctypes.c_byte * torch.ops.mkldnn._nbytes(opaque)).from_address(torch.ops.mkldnn.data_ptr(opaque))
    return torch.frombuffer(buffer, dtype=opaque.dtype)


def layout_of(opaque: Tensor) -> Tensor:
    """How these numbers are arranged, as bytes."""
    return cast("Tensor", torch.ops.mkldnn._get_mkldnn_serialized_md(opaque))


def opaque_of(numbers: Tensor, layout: Tensor, sizes: Sequence[int]) -> Tensor:
    """The tensor of these `sizes`; it reads `numbers` where they are and keeps them there. OSError where this torch
    makes none of such numbers."""
    rows, columns = sizes
    found = ctypes.c_void_p()
    description = layout.numpy().tobytes()
    failed = _function("create_tensor_from_blob_v2")(
        ctypes.c_void_p(numbers.data_ptr()),
        ctypes.c_int64(2),
        (ctypes.c_int64 * 2)(rows, columns),
        (ctypes.c_int64 * 2)(columns, 1),
        ctypes.c_int64(0),  # storage offset
        ctypes.c_int32(_code(str(numbers.dtype).replace("torch.", "dtype_"))),
        ctypes.c_int32(_code("device_type_cpu")),
        ctypes.c_int32(0),  # device index
        ctypes.byref(found),
        ctypes.c_int32(_code("layout__mkldnn")),
        description,
        ctypes.c_int64(len(description)),
    )
    if failed:
        raise OSError(errno.EINVAL, "torch makes no tensor of such numbers")
    opaque = torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(_capsule(found.value, None, None))
    opaque.numbers = numbers  # type: ignore[attr-defined]
    return opaque


def _code(name: str) -> int:
    """What torch's C interface calls a number format, a kind of device or a layout."""
    return cast("int", _function(name)())


@cache
def _function(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(str(_TORCH)), f"aoti_torch_{name}")
    except AttributeError:
        raise OSError(errno.ENOSYS, f"torch {torch.__version__} has no {name}") from None


_capsule = cast("Callable[[int | None, None, None], ctypes.c_void_p]", ctypes.pythonapi.PyCapsule_New)
"""A pointer as torch's Python wants it, whatever its stubs say."""
ctypes.pythonapi.PyCapsule_New.restype = ctypes.py_object
ctypes.pythonapi.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


logger = logging.getLogger(__name__)

_LAYOUT = ".layout"
"""Behind the name of a tensor that is oneDNN's own: the tensor that says how it is arranged."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model's weights, and where and how they will be used."""

    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype
    kind: LinearType
    progress: Progress


def load_weights(wanted: Wanted, folder: Path | None, form: str) -> Weights:
    """`folder` is the cache, None is without; `form` says how the device wants them, as in `weight_cache`.

    CheckpointError as in `read_weights`.
    """
    sources = weight_files(wanted.checkpoint.path)
    if folder is None or not is_worthwhile(sources, wanted.device.type):
        return _read(wanted)[0]
    try:
        entry = CacheEntry.of(folder, wanted.checkpoint.origin, sources, form)
        return _opened(wanted, entry) or _made(wanted, entry, sources)
    except OSError as error:
        reason = error.strerror or str(error)
        logger.warning("weights are not cached", extra={"folder": str(folder), "reason": reason})
        return _read(wanted)[0]


def _read(wanted: Wanted) -> tuple[Weights, dict[str, Tensor]]:
    return read_weights(wanted.checkpoint, wanted.device, wanted.dtype, wanted.kind, wanted.progress)


def _opened(wanted: Wanted, entry: CacheEntry) -> Weights | None:
    """Its length and its header are looked at, its content was when it was made: as with any safetensors file."""
    if not entry.file.is_file():
        return None
    try:
        with TensorFiles.open((entry.file,)) as files:
            weights = assemble(wanted.checkpoint, files, _Kept(files, wanted))
    except CheckpointError as error:
        logger.warning("cached weights are broken", extra={"file": str(entry.file), "reason": error.detail})
        return None
    logger.info("weights mapped", extra={"model": wanted.checkpoint.name, "file": str(entry.file)})
    return weights


def _made(wanted: Wanted, entry: CacheEntry, sources: Sequence[Path]) -> Weights:
    with lock(entry.file.parent):
        if (weights := _opened(wanted, entry)) is None:  # else another process was quicker
            _convert(wanted, entry, sources)
            weights = _opened(wanted, entry)
    if weights is None:
        raise OSError(errno.EIO, "what was written cannot be read")
    return weights


def _convert(wanted: Wanted, entry: CacheEntry, sources: Sequence[Path]) -> None:
    started = time.monotonic()
    source_bytes = sum(file.stat().st_size for file in sources)
    logger.info("converting weights", extra={"file": str(entry.file), "source_bytes": source_bytes})
    about = wanted.checkpoint.shape.num_parameters * wanted.dtype.itemsize
    with entry.write_entry(about) as temporary, ThreadPoolExecutor(1) as beside:
        checking = beside.submit(require_checksums, sources)
        _, taken = _read(wanted)
        tensors = dict(_to_keep(taken))
        total = safetensors_writer.num_bytes(tensors)
        safetensors_writer.write(temporary, tensors, lambda done: wanted.progress(done, total))
        if not safetensors_writer.is_sound(temporary):
            raise OSError(errno.EIO, "the disk does not hold what was written")
        checking.result()  # what is wrong there must not be kept
    extra = {"file": str(entry.file), "source_bytes": source_bytes, "cache_bytes": entry.file.stat().st_size}
    logger.info("weights converted", extra={**extra, "seconds": round(time.monotonic() - started, 1)})


def _to_keep(taken: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in taken.items():
        if tensor.is_mkldnn:
            yield name, numbers_of(tensor)
            yield name + _LAYOUT, layout_of(tensor)
        else:
            yield name, tensor


class _Kept:
    """Takes tensors as they lie in the file: onto the CPU without a copy."""

    def __init__(self, files: TensorFiles, wanted: Wanted) -> None:
        self._files = files
        self._device = wanted.device
        self._kind = wanted.kind

    def tensor(self, name: str, *sizes: int) -> Tensor:
        self._files.expect(name, sizes)
        return self._there(name)

    def linear(self, name: str, parts: Sequence[str], num_out: int, num_in: int) -> Linear:
        return self._kind.made(**{part: self._part(f"{name}.{part}", num_out, num_in) for part in self._kind.tensors})

    def _part(self, name: str, num_out: int, num_in: int) -> Tensor:
        if name + _LAYOUT not in self._files:
            return self._there(name)
        return opaque_of(self._files.mapped(name), self._files.mapped(name + _LAYOUT), (num_out, num_in))

    def _there(self, name: str) -> Tensor:
        return self._files.mapped(name).to(self._device)
