"""Opens the weights of a checkpoint; pickles are converted once, and the result is opened from then on.

A cache that cannot be written is no reason not to serve: then the pickles themselves are opened, as without a cache.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from service.checkpoint import Checkpoint
from service.engine import safetensors_writer
from service.engine.tensor_files import Progress, TensorFiles
from service.errors import CheckpointError
from service.weight_cache import CacheEntry, lock
from service.weight_files import are_pickled, require_checksums, weight_files

logger = logging.getLogger(__name__)

Check = Callable[[TensorFiles], object]
"""Raises CheckpointError when the tensors are not those of the model."""


def open_weights(
    checkpoint: Checkpoint, dtype: torch.dtype, folder: Path | None, check: Check, progress: Progress
) -> TensorFiles:
    """The tensors of `checkpoint`; `folder` holds the cache, None is without. `progress` hears of a conversion."""
    sources = weight_files(checkpoint.path)
    if folder is None or not are_pickled(sources):
        return TensorFiles.open(sources)
    try:
        precision = str(dtype).removeprefix("torch.")
        entry = CacheEntry.of(folder, checkpoint.origin, sources, precision)
        return _opened(entry, check) or _made(entry, sources, dtype, check, progress)
    except OSError as error:
        reason = error.strerror or str(error)
        logger.warning("weights are not cached", extra={"folder": str(folder), "reason": reason})
        return TensorFiles.open(sources)


def _opened(entry: CacheEntry, check: Check) -> TensorFiles | None:
    """Its length and its header are looked at, its content was when it was made: as with any safetensors file."""
    if not entry.file.is_file():
        return None
    try:
        files = TensorFiles.open((entry.file,))
        check(files)
    except CheckpointError as error:
        logger.warning("cached weights are broken", extra={"file": str(entry.file), "reason": error.detail})
        return None
    return files


def _made(
    entry: CacheEntry, sources: Sequence[Path], dtype: torch.dtype, check: Check, progress: Progress
) -> TensorFiles:
    with lock(entry.file.parent):
        if not (files := _opened(entry, check)):  # else another process was quicker
            _convert(entry, sources, dtype, check, progress)
            files = _opened(entry, check)
    if files is None:
        raise OSError(errno.EIO, "the converted file cannot be read")
    return files


def _convert(entry: CacheEntry, sources: Sequence[Path], dtype: torch.dtype, check: Check, progress: Progress) -> None:
    started = time.monotonic()
    source_bytes = sum(file.stat().st_size for file in sources)
    logger.info("converting weights", extra={"file": str(entry.file), "source_bytes": source_bytes})
    with TensorFiles.open(sources) as files:
        check(files)
        tensors = files.entries()
        total = safetensors_writer.num_bytes(tensors, dtype)
        with entry.being_written(total) as temporary, ThreadPoolExecutor(1) as beside:
            checking = beside.submit(require_checksums, sources)
            safetensors_writer.write(temporary, tensors, dtype, lambda done: progress(done, total))
            if not safetensors_writer.is_sound(temporary):
                raise OSError(errno.EIO, "the disk does not hold what was written")
            checking.result()  # what is wrong there must not be kept
    extra = {"file": str(entry.file), "source_bytes": source_bytes, "cache_bytes": entry.file.stat().st_size}
    logger.info("weights converted", extra={**extra, "seconds": round(time.monotonic() - started, 1)})
