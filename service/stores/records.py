"""Small JSON records on disk, in a folder of each owner, with files of their own next to them.

A write is atomic, and on the disk when it returns. Several processes may share the folder: one lock serves all changes
that have to see each other. Everything is readable by the server's user only.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from service.errors import StorageFull, StorageUnavailable

logger = logging.getLogger(__name__)

RECORD, PART = ".json", ".part"
OPEN_MODE, FOLDER_MODE = 0o600, 0o700
_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")
_OWNER = "@"
"""Before an owner's name in that of its folder: a key may be called `..`, and without keys the name is empty."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Records:
    """The records in a folder. Every method reads or writes the disk, and raises StorageFull or StorageUnavailable."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self) -> None:
        """Creates the folder. Raises StorageUnavailable if it cannot be written."""
        with self.storing():
            self.folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def owners(self) -> list[str]:
        with self.storing():
            return [each.name[1:] for each in os.scandir(self.folder) if each.name.startswith(_OWNER)]

    def entries(self, owner: str) -> list[os.DirEntry[str]]:
        """The files of an owner."""
        with self.storing():
            try:
                return list(os.scandir(self.folder / f"{_OWNER}{owner}"))
            except FileNotFoundError:
                return []

    def ids(self, owner: str, suffix: str, prefix: str = "") -> list[str]:
        """The ids of the files of an owner that end with `suffix`, in no order."""
        names = (each.name for each in self.entries(owner))
        return [name.removesuffix(suffix) for name in names if name.endswith(suffix) and name.startswith(prefix)]

    def num_bytes(self, owner: str) -> int:
        """The size of all files of an owner, of those that are being written, too."""
        total = 0
        for entry in self.entries(owner):
            with suppress(FileNotFoundError):
                total += entry.stat().st_size
        return total

    def file(self, owner: str, id: str, suffix: str) -> Path:
        return self.folder / f"{_OWNER}{owner}" / f"{id}{suffix}"

    def read(self, owner: str, id: str) -> dict[str, Any] | None:
        """None for an id that has no record, or could be none; a record that is no JSON is logged."""
        if not _ID.fullmatch(id):
            return None
        file = self.file(owner, id, RECORD)
        with self.storing():
            try:
                data = file.read_bytes()
            except FileNotFoundError:
                return None
        try:
            record: dict[str, Any] = orjson.loads(data)
        except orjson.JSONDecodeError:
            logger.error("damaged record", extra={"file": str(file)})
            return None
        return record

    def write(self, owner: str, id: str, record: dict[str, Any]) -> None:
        part = self.file(owner, f".{id}", PART)
        try:
            with self.storing():
                part.parent.mkdir(mode=FOLDER_MODE, exist_ok=True)
                with open_private(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
                    write_all(descriptor, orjson.dumps(record))
                    os.fsync(descriptor)
                part.replace(self.file(owner, id, RECORD))
                sync_folder(part.parent)
        except BaseException:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise

    def remove(self, owner: str, id: str, *suffixes: str) -> None:
        """Removes a record first, then the files next to it: what remains after a kill is swept."""
        with self.storing():
            for suffix in (RECORD, *suffixes):
                self.file(owner, id, suffix).unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one of all processes and threads is here at a time."""
        with self.storing(), open_private(self.folder / ".lock", os.O_RDWR | os.O_CREAT) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield

    @contextmanager
    def storing(self) -> Iterator[None]:
        """Makes an OSError one for clients."""
        try:
            yield
        except OSError as error:
            logger.error("storage failed", extra={"folder": str(self.folder), "reason": error.strerror})
            if error.errno in _FULL:
                raise StorageFull("the disk that keeps files and batches is full; nothing was changed") from None
            raise StorageUnavailable(f"files and batches cannot be read or written: {error.strerror}") from None


@contextmanager
def open_private(path: Path, flags: int) -> Iterator[int]:
    """A descriptor of a file that only this user may read."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, OPEN_MODE)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:  # a write may end early, as at a limit of the file's size
        rest = rest[os.write(descriptor, rest) :]


def sync_folder(folder: Path) -> None:
    with open_private(folder, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)
