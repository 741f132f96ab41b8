"""A folder for what clients store: its files are private, written whole, and changed by one process at a time.

A file is on the disk when its write returns. A kill, a full disk or a second writer leave the old content or the new
one, never a part.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.errors import StorageFull, StorageUnavailable

logger = logging.getLogger(__name__)

PART = ".part"
"""The suffix of a file that is being written, which a kill may leave behind."""
OPEN_MODE, FOLDER_MODE = 0o600, 0o700
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class Disk:
    """The folder; several processes may share it. `contents` says in errors what it keeps.

    Every method raises StorageFull or StorageUnavailable.
    """

    def __init__(self, folder: Path, contents: str) -> None:
        self.folder = folder
        self._contents = contents

    def make_folder(self) -> None:
        """Creates the folder, with those above it."""
        with self.storing():
            self.folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)

    def write(self, file: Path, data: bytes) -> None:
        """Replaces a file in the folder or in one below it."""
        part = file.with_name(f".{file.name}{PART}")
        try:
            with self.storing():
                with open_private(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
                    write_all(descriptor, data)
                    os.fsync(descriptor)
                part.replace(file)
                sync_folder(file.parent)
        except BaseException:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one of all processes and threads is here at a time."""
        with self.storing():
            descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, OPEN_MODE)
        try:
            with self.storing():
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def storing(self) -> Iterator[None]:
        """Makes an OSError one for clients."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or type(error).__name__
            logger.error("storage failed", extra={"folder": str(self.folder), "reason": reason})
            if error.errno in _FULL:
                raise StorageFull(f"the disk that keeps {self._contents} is full; nothing was changed") from None
            if error.errno in _READ_ONLY:
                raise StorageUnavailable(f"{self._contents} are read-only on this server") from None
            raise StorageUnavailable(f"{self._contents} cannot be read or written: {reason}") from None


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
    """Makes the name of a new file survive a power loss, as its content does."""
    with open_private(folder, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)
