"""Files that clients upload, and that batches make: owned by a key, within quotas, deleted when they expire."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Self

from service.errors import BodyTooLarge, QuotaExceeded, StoredFileNotFound
from service.stores.disk import FOLDER_MODE, OPEN_MODE, PART, sync_folder
from service.stores.records import RECORD, Records

DATA = ".data"
ID = "file-"
CHECK_BYTES = 8 * 2**20
"""An upload checks the quotas again whenever it has written as much."""
ORPHAN_S = 3600.0
"""Age from which a file without a record is removed: an upload that still runs writes to its own."""


@dataclass(frozen=True, slots=True)
class Quotas:
    """Of files: the bytes of an uploaded one, number and bytes of all of a key, bytes in all, the lines of a batch, and
    seconds until a file expires that names no other time."""

    max_file_bytes: int
    max_files: int
    max_key_bytes: int
    max_bytes: int
    max_lines: int
    expiry_s: int


@dataclass(frozen=True, slots=True)
class StoredFile:
    """Times are seconds since the epoch."""

    id: str
    owner: str
    filename: str
    purpose: str
    num_bytes: int
    created_at: int
    expires_at: int


class Upload:
    """A file that is being written. It is one of the store's once it is kept; else `drop` removes it."""

    def __init__(self, store: FileStore, owner: str, id: str, max_bytes: int | None) -> None:
        self.id = id
        self.num_bytes = 0
        self._store = store
        self._owner = owner
        self._max_bytes = max_bytes
        self._num_unchecked = 0
        self._part = store.records.file(owner, id, PART)
        with store.records.storing():
            self._part.parent.mkdir(mode=FOLDER_MODE, exist_ok=True)
            descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, OPEN_MODE)
            self._file: BinaryIO = os.fdopen(descriptor, "wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.drop()

    def write(self, data: bytes) -> None:
        """Raises BodyTooLarge, QuotaExceeded, and what storing raises; an output has no limits of its own."""
        with self._store.records.storing():
            self._file.write(data)
        self.num_bytes += len(data)
        self._num_unchecked += len(data)
        if self._max_bytes is not None and self.num_bytes > self._max_bytes:
            raise BodyTooLarge(f"the file is larger than {self._max_bytes} bytes (max_file_bytes); send several")
        if self._max_bytes is not None and self._num_unchecked >= CHECK_BYTES:
            self._num_unchecked = 0
            self._store.check_room(self._owner)

    def keep(self, filename: str, purpose: str, expiry_s: int | None = None) -> StoredFile:
        """The file, which is on the disk now. Raises QuotaExceeded, and what storing raises."""
        store = self._store
        with store.records.storing():
            self._file.flush()
        if self._max_bytes is not None:
            store.check_room(self._owner)
        now = int(store.clock())
        expires_at = now + (expiry_s or store.quotas.expiry_s)
        kept = StoredFile(self.id, self._owner, filename, purpose, self.num_bytes, now, expires_at)
        with store.records.storing():
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.replace(store.path(kept))
            sync_folder(self._part.parent)
        store.records.write_record(self._owner, self.id, asdict(kept))
        return kept

    def drop(self) -> None:
        """Removes what is not kept."""
        with suppress(OSError):
            self._file.close()
            self._part.unlink(missing_ok=True)


class FileStore:
    """The files in a folder. Every method reads or writes the disk; a file of another owner is not found."""

    def __init__(self, records: Records, quotas: Quotas, clock: Callable[[], float] = time.time) -> None:
        self.records = records
        self.quotas = quotas
        self.clock = clock

    def upload(self, owner: str) -> Upload:
        """Starts an upload. Raises QuotaExceeded."""
        num_files = len(self.records.ids(owner, DATA))
        if num_files >= self.quotas.max_files:
            raise QuotaExceeded(f"this key has {num_files} files; at most {self.quotas.max_files} are kept; delete one")
        self.check_room(owner)
        return Upload(self, owner, f"{ID}{secrets.token_hex(12)}", self.quotas.max_file_bytes)

    def output(self, owner: str, id: str) -> Upload:
        """Starts a file that a batch makes, which has checked the quotas itself."""
        return Upload(self, owner, id, None)

    def check_room(self, owner: str, num_more: int = 0) -> None:
        """Raises QuotaExceeded if the files of an owner, or of all, would be above their limit with as many bytes."""
        used = self.records.num_bytes(owner) + num_more
        if used > self.quotas.max_key_bytes:
            most = self.quotas.max_key_bytes
            raise QuotaExceeded(f"the files of this key would have {used} bytes, at most {most} are kept; delete some")
        if self.num_bytes() + num_more > self.quotas.max_bytes:
            raise QuotaExceeded(
                f"the files of all keys would have more than {self.quotas.max_bytes} bytes (max_all_files_bytes)"
            )

    def num_bytes(self) -> int:
        """Of all files of all owners."""
        return sum(self.records.num_bytes(owner) for owner in self.records.owners())

    def get(self, owner: str, id: str) -> StoredFile:
        """Raises StoredFileNotFound."""
        found = self._find(owner, id)
        if found is None or found.expires_at <= self.clock():
            raise StoredFileNotFound(f"there is no file {id[:80]}; GET /v1/files lists those of this key")
        return found

    def path(self, file: StoredFile) -> Path:
        return self.records.file(file.owner, file.id, DATA)

    def all(self, owner: str) -> list[StoredFile]:
        """The files of an owner, the newest first."""
        found = (self._find(owner, id) for id in self.records.ids(owner, RECORD, ID))
        now = self.clock()
        kept = [each for each in found if each is not None and each.expires_at > now]
        return sorted(kept, key=lambda file: (file.created_at, file.id), reverse=True)

    def delete(self, owner: str, id: str) -> None:
        """Raises StoredFileNotFound."""
        self.get(owner, id)
        self.records.remove(owner, id, DATA)

    def sweep(self) -> None:
        """Removes files that have expired, and those that an interrupted write has left without a record."""
        now = self.clock()
        for owner in self.records.owners():
            for id in self.records.ids(owner, RECORD, ID):
                found = self._find(owner, id)
                if found is not None and found.expires_at <= now:
                    self.records.remove(owner, id, DATA)
            for entry in self.records.entries(owner):
                self._sweep_orphan(owner, entry, now)

    def _sweep_orphan(self, owner: str, entry: os.DirEntry[str], now: float) -> None:
        id = entry.name.lstrip(".").partition(".")[0]
        with self.records.storing(), suppress(FileNotFoundError):
            is_old = now - entry.stat().st_mtime > ORPHAN_S
            if is_old and (entry.name.endswith(PART) or self.records.read(owner, id) is None):
                Path(entry.path).unlink()

    def _find(self, owner: str, id: str) -> StoredFile | None:
        record = self.records.read(owner, id) if id.startswith(ID) else None
        return None if record is None else StoredFile(**record)
