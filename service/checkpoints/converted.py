"""The files of the weight cache: one safetensors file for each checkpoint and form, its name, lock and disk space."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from service import host
from service.checkpoints.files import are_pickled
from service.domain import Quantization, Runtime

logger = logging.getLogger(__name__)

FORMAT = 7
"""Increases when files of earlier versions must not be read any more."""

SPARE_BYTES = 1 << 28
"""The disk space that stays free."""

WORTHWHILE_BYTES = 1 << 30
"""Smaller checkpoints are converted in less than a second at every start and need no cache."""

_SUFFIX = ".safetensors"
_PART = f"{_SUFFIX}.part"


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One file of the cache, which may not exist yet, and the common prefix of the file names that it replaces."""

    file: Path
    prefix: str

    @classmethod
    def of(cls, folder: Path, origin: str, sources: Sequence[Path], form: str) -> CacheEntry:
        """The entry for a checkpoint and a form; `origin` is the folder or the repository of the checkpoint.

        The file's name changes when a source file or the version of torch does. Raises OSError when a source cannot be
        accessed.
        """
        readable = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(origin).name)
        prefix = f"{readable}-{_hash(origin)[:8]}-{form}-"
        identity = _hash([FORMAT, version("torch"), form, *map(_identity, sources)])
        return cls(folder / f"{prefix}{identity[:16]}{_SUFFIX}", prefix)

    @contextmanager
    def write_entry(self, num_bytes: int) -> Iterator[Path]:
        """Yields the path of a temporary file, which replaces the entry's file at the end. Call under `lock`.

        Raises OSError (ENOSPC) before anything is written when `num_bytes` do not fit on the disk.
        """
        folder = self.file.parent
        for leftover in folder.glob(f"*{_PART}"):  # of a process that was killed: under the lock, no other one writes
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        _require_space(folder, num_bytes)
        # A folder and not a file, because save_file makes a temporary file of its own next to the one it writes.
        with TemporaryDirectory(prefix=f"{self.file.stem}-", suffix=_PART, dir=folder) as temporary:
            yield Path(temporary) / self.file.name
            (Path(temporary) / self.file.name).replace(self.file)
        _sync_folder(folder)
        self._remove_older()

    def _remove_older(self) -> None:
        for old in self.file.parent.glob(f"{self.prefix}*{_SUFFIX}"):
            if old != self.file:
                logger.info("old cached weights removed", extra={"file": str(old), "bytes": old.stat().st_size})
                old.unlink(missing_ok=True)


def form_of(device: str, precision: str, quantization: Quantization, runtime: Runtime) -> str:
    """The name of the form in which a device needs the weights. The layout on a CPU depends on its features."""
    arithmetic = precision if quantization == "none" else f"{quantization}-{precision}"
    if device != "cpu":
        return f"{arithmetic}-gpu"
    return f"{arithmetic}-{runtime}-cpu-{_hash(sorted(host.cpu_features()))[:6]}"


def is_worthwhile(sources: Sequence[Path], device: str) -> bool:
    """Whether converted weights are cached: for pickles, and on a CPU for large checkpoints, which are packed."""
    is_large = sum(file.stat().st_size for file in sources) >= WORTHWHILE_BYTES
    return are_pickled(sources) or (device == "cpu" and is_large)


def files_to_read(folder: Path | None, origin: str, sources: Sequence[Path], forms: Iterable[str]) -> Sequence[Path]:
    """The files that a start will read: the cached file of the first of these forms that has one, else the sources."""
    if folder is None:
        return sources
    cached = [CacheEntry.of(folder, origin, sources, form).file for form in forms]
    return [file for file in cached if file.is_file()][:1] or sources


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Creates the folder and locks it against other writers, which wait. The lock ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that converts weights", extra={"folder": str(folder)})
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _identity(file: Path) -> list[str | int]:
    """Path, size and time of a file. A file of the hub's cache resolves to a name that is the hash of its content."""
    status = file.stat()
    return [str(file.resolve()), status.st_size, status.st_mtime_ns]


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _require_space(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes + SPARE_BYTES:
        needed = f"the weights need {num_bytes / 1e9:.1f} GB, and {SPARE_BYTES / 1e9:.1f} GB must stay free"
        raise OSError(errno.ENOSPC, f"{free / 1e9:.1f} GB are free; {needed}")


def _sync_folder(folder: Path) -> None:
    """Makes the new file name survive a power loss, as the content does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
