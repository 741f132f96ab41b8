"""Named label sets: one JSON file each, in a folder that several processes may share.

A file that is damaged is renamed, and never served.
"""

from __future__ import annotations

import logging
import os
import re
import time
import unicodedata
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote, unquote

import orjson

from service.errors import (
    InvalidRequest,
    LabelSetNotFound,
    PreconditionFailed,
    QuotaExceeded,
)
from service.stores.disk import PART, Disk, sync_folder

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0
"""Longest time in which a version written by another process is not seen."""
FORMAT = 1
MAX_NAME_BYTES = 64
MAX_BYTES = 64 * 2**20
_NAME = re.compile(r"\w(?:[\w.-]*\w)?")
_SUFFIX = ".json"

V = TypeVar("V")
Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class LabelSet(Generic[V]):
    """One version of a set. `value` is what `parse` makes of the content, `owner` the account that wrote it."""

    name: str
    version: int
    owner: str
    num_labels: int
    content: dict[str, Any]
    value: V

    @property
    def etag(self) -> str:
        """Differs between any two versions, also of a set that was deleted and written again."""
        return f'"{self.version}-{zlib.crc32(orjson.dumps(self.content)):08x}"'


@dataclass(slots=True)
class _Kept(Generic[V]):
    stamp: Stamp | None
    checked_at: float
    found: LabelSet[V] | None


class LabelSets(Generic[V]):
    """The label sets in a folder. Every method reads the disk; only `recent` does not.

    `parse` validates a content; what it raises makes a stored file a damaged one. An account may own `max_sets` sets
    with `max_labels` labels and `max_bytes` bytes together, descriptions and examples included.
    """

    def __init__(
        self,
        folder: Path,
        parse: Callable[[dict[str, Any]], V],
        *,
        max_sets: int,
        max_labels: int,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._disk = Disk(folder, "the label sets")
        self._parse = parse
        self._max_sets = max_sets
        self._max_labels = max_labels
        self._max_bytes = max_bytes
        self._clock = clock
        self._kept: dict[str, _Kept[V]] = {}

    def open(self) -> None:
        """Creates the folder, readable by this user only, and removes what an interrupted write has left.

        Raises StorageUnavailable if the folder can be neither created nor read.
        """
        self._disk.make_folder()
        with self._disk.storing():
            next(self._folder.iterdir(), None)
        if not os.access(self._folder, os.W_OK):
            logger.info("label sets are read-only", extra={"folder": str(self._folder)})
            return
        with self._disk.locked():
            for part in self._folder.glob(f".*{PART}"):
                part.unlink(missing_ok=True)

    def recent(self, name: str) -> LabelSet[V] | None:
        """The set, if it was read or checked within CHECK_INTERVAL_S."""
        kept = self._kept.get(name)
        return kept.found if kept and self._clock() - kept.checked_at < CHECK_INTERVAL_S else None

    def get(self, name: str) -> LabelSet[V]:
        """Raises LabelSetNotFound, StorageUnavailable."""
        check_name(name)
        found = self._read(name)
        if found is None:
            raise self._not_found(name)
        return found

    def all(self) -> list[LabelSet[V]]:
        """All sets by name; damaged ones are left out."""
        with self._disk.storing():
            files = [file for file in self._folder.glob(f"*{_SUFFIX}") if not file.name.startswith(".")]
        found = [self._read(_name_of(file)) for file in sorted(files)]
        return [each for each in found if each is not None]

    def put(
        self, name: str, content: dict[str, Any], num_labels: int, owner: str, if_match: str | None = None
    ) -> LabelSet[V]:
        """Writes the next version. `if_match` is an ETag, `*` for any existing version, or `""` for none.

        Raises:
            InvalidRequest: the name cannot be one.
            PreconditionFailed: the current version is another one.
            QuotaExceeded: the owner would have too many sets, labels or bytes.
            StorageFull, StorageUnavailable: nothing was written.
        """
        check_name(name)
        value = self._parse(content)
        with self._disk.locked():
            current = self._read(name)
            _check_match(name, current, if_match)
            written = LabelSet(name, current.version + 1 if current else 1, owner, num_labels, content, value)
            record = _record(written)
            self._check_quota(name, owner, num_labels, len(record))
            file = self._file(name)
            self._disk.write(file, record)
            with self._disk.storing():
                self._kept[name] = _Kept(_read_stamp(file), self._clock(), written)
        return written

    def delete(self, name: str, if_match: str | None = None) -> None:
        """Raises LabelSetNotFound, PreconditionFailed, StorageUnavailable."""
        check_name(name)
        with self._disk.locked():
            current = self._read(name)
            if current is None:
                raise self._not_found(name)
            _check_match(name, current, if_match)
            with self._disk.storing():
                self._file(name).unlink(missing_ok=True)
                sync_folder(self._folder)
            self._kept.pop(name, None)

    # files

    def _file(self, name: str) -> Path:
        return self._folder / f"{quote(name, safe='')}{_SUFFIX}"

    def _read(self, name: str) -> LabelSet[V] | None:
        file, now = self._file(name), self._clock()
        with self._disk.storing():
            stamp = _read_stamp(file)
            kept = self._kept.get(name)
            if kept is None or kept.stamp != stamp:
                kept = _Kept(stamp, now, self._load(name, file) if stamp else None)
            kept.checked_at = now
        if kept.found is None:
            self._kept.pop(name, None)
        else:
            self._kept[name] = kept
        return kept.found

    def _load(self, name: str, file: Path) -> LabelSet[V] | None:
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            return None
        try:
            record = _open_record(data, name)
            value = self._parse(record["content"])
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the content, it is not served
            self._set_aside(file, type(error).__name__)
            return None
        return LabelSet(name, record["version"], record["owner"], record["num_labels"], record["content"], value)

    def _set_aside(self, file: Path, reason: str) -> None:
        aside = next(path for index in range(10_000) if not (path := file.with_suffix(f".damaged{index}")).exists())
        with suppress(OSError):
            file.rename(aside)
        logger.error("damaged label set set aside", extra={"file": str(aside), "reason": reason})

    # checks

    def _not_found(self, name: str) -> LabelSetNotFound:
        if any(self._folder.glob(f"{self._file(name).stem}.damaged*")):
            return LabelSetNotFound("label_set: its file was damaged, and is set aside on the server; write it again")
        return LabelSetNotFound("label_set: there is no such set; GET /v1/label-sets lists all")

    def _check_quota(self, name: str, owner: str, num_labels: int, num_bytes: int) -> None:
        others = [each for each in self.all() if each.owner == owner and each.name != name]
        if len(others) >= self._max_sets:
            raise QuotaExceeded(f"this key has {len(others)} label sets; at most {self._max_sets} are kept; delete one")
        total = sum(each.num_labels for each in others) + num_labels
        if total > self._max_labels:
            raise QuotaExceeded(
                f"the label sets of this key would have {total} labels; at most {self._max_labels} are kept"
            )
        total = num_bytes + sum(self._size(each.name) for each in others)
        if total > self._max_bytes:
            raise QuotaExceeded(
                f"the label sets of this key would have {total} bytes with their descriptions and examples;"
                f" at most {self._max_bytes} are kept"
            )

    def _size(self, name: str) -> int:
        kept = self._kept.get(name)
        return kept.stamp[2] if kept and kept.stamp else 0


def check_name(name: str) -> None:
    """Raises InvalidRequest."""
    if not _NAME.fullmatch(name) or len(name.encode()) > MAX_NAME_BYTES or unicodedata.normalize("NFC", name) != name:
        wanted = f"wanted letters, digits and ._- between them, at most {MAX_NAME_BYTES} bytes of UTF-8 (NFC)"
        raise InvalidRequest.of("label_set", f"cannot be the name of a label set; {wanted}")


def _check_match(name: str, current: LabelSet[Any] | None, if_match: str | None) -> None:
    if if_match is None:
        return
    if if_match == "" and current is not None:
        raise PreconditionFailed("If-None-Match: the label set exists")
    if if_match and (current is None or if_match not in ("*", current.etag)):
        is_now = f"is {current.etag}" if current else "does not exist"
        raise PreconditionFailed(f"If-Match: the label set {is_now}; read it again")


def _record(written: LabelSet[Any]) -> bytes:
    record = {
        "format": FORMAT,
        "name": written.name,
        "version": written.version,
        "owner": written.owner,
        "num_labels": written.num_labels,
        "content": written.content,
    }
    return orjson.dumps({"crc32": _checksum(record), **record})


def _open_record(data: bytes, name: str) -> dict[str, Any]:
    """Raises ValueError or KeyError for any file that is not as it was written."""
    record: dict[str, Any] = orjson.loads(data)
    if record.pop("crc32") != _checksum(record):
        raise ValueError("wrong checksum")
    if record["format"] != FORMAT or record["name"] != name:
        raise ValueError("another format, or a file of another set")
    return record


def _checksum(record: dict[str, Any]) -> int:
    return zlib.crc32(orjson.dumps(record, option=orjson.OPT_SORT_KEYS))


def _name_of(file: Path) -> str:
    return unquote(file.name.removesuffix(_SUFFIX))


def _read_stamp(file: Path) -> Stamp | None:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
