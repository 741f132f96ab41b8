"""The weights of a checkpoint as the device wants them: converted once, kept in a file, and mapped from then on.

What is mapped takes no memory of a CPU process's own, so the replicas of a machine share it. A cache that cannot be
written is no reason not to serve: then the weights are converted at every start.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from service.checkpoints.checkpoint import Checkpoint
from service.checkpoints.converted import CacheEntry, is_worthwhile, lock
from service.checkpoints.files import require_checksums, weight_files
from service.engine import safetensors_writer
from service.engine.linear import Linear, LinearType
from service.engine.tensor_files import Progress, TensorFiles
from service.engine.torch_private import map_packed, packed_layout, packed_values
from service.engine.weights import Weights, assemble, read_weights
from service.errors import CheckpointError

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
            yield name, packed_values(tensor)
            yield name + _LAYOUT, packed_layout(tensor)
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
        return map_packed(self._files.mapped(name), self._files.mapped(name + _LAYOUT), (num_out, num_in))

    def _there(self, name: str) -> Tensor:
        return self._files.mapped(name).to(self._device)
