"""Small JSON records on disk, in a folder of each owner, with files of their own next to them.

One lock serves all changes that have to see each other.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from service.stores.disk import FOLDER_MODE, Disk

logger = logging.getLogger(__name__)

RECORD = ".json"
_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")
_OWNER = "@"
"""Before an owner's name in that of its folder: a key may be called `..`, and without keys the name is empty."""


class Records(Disk):
    """The records in a folder. Every method reads or writes the disk."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "files and batches")

    def open(self) -> None:
        """Creates the folder. Raises StorageUnavailable if it cannot be written."""
        self.make_folder()
        with self.storing():
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

    def write_record(self, owner: str, id: str, record: dict[str, Any]) -> None:
        file = self.file(owner, id, RECORD)
        with self.storing():
            file.parent.mkdir(mode=FOLDER_MODE, exist_ok=True)
        self.write(file, orjson.dumps(record))

    def remove(self, owner: str, id: str, *suffixes: str) -> None:
        """Removes a record first, then the files next to it: what remains after a kill is swept."""
        with self.storing():
            for suffix in (RECORD, *suffixes):
                self.file(owner, id, suffix).unlink(missing_ok=True)
