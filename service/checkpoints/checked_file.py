"""A safetensors file with two checksums: of its head, which is checked before anything is mapped, and of its body.

The head is the header and the tensors that say how the others are laid out: a wrong byte there could crash a process.
The body holds numbers only; a wrong byte there gives wrong answers. Every byte of the file is in one of the two.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ALIGNMENT = 64
"""A cache line: with the 8 bytes of the format, packed weights are multiplied 25 to 40 % slower (64 to 256 tokens)."""

_CHUNK_BYTES = 1 << 20
_START = re.compile(
    rb'.{8}\{"__metadata__":\{"crc32":"(?P<sums>([0-9a-f]{8}) ([0-9a-f]{8}))","head_bytes":"(\d{15})",'
    rb'"file_bytes":"(\d{15})"\}',
    re.DOTALL,
)
"""How every file starts. The numbers have a fixed width, so they are found without parsing what may be damaged."""

_NO_SUMS = "00000000 00000000"
"""Stands in place of the checksums when that of the head is computed."""


class DamagedFile(Exception):
    """The file is not as it was written; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a file; `dtype` is the name of its type in safetensors."""

    name: str
    dtype: str
    shape: Sequence[int]
    num_bytes: int
    read: Callable[[], memoryview | bytes]


def write_checked(file: Path, head: Sequence[Part], body: Sequence[Part]) -> int:
    """Writes the file and waits for the disk. Returns its bytes; raises OSError, as when the disk is full.

    Every tensor starts at a multiple of 64 bytes; for this, tensors with names in `.padding` fill the gaps.
    """
    head, body = _padded(head), _padded(body)
    start, size = _head(head, body)
    body_sum = 0
    with file.open("wb", buffering=0) as stream:
        _write(stream.fileno(), start)
        head_sum = zlib.crc32(start)
        for part in head:
            content = part.read()
            head_sum = zlib.crc32(content, head_sum)
            _write(stream.fileno(), content)
        for part in body:
            content = part.read()
            body_sum = zlib.crc32(content, body_sum)
            _write(stream.fileno(), content)
        sums = f"{head_sum:08x} {body_sum:08x}".encode()
        os.pwrite(stream.fileno(), sums, start.index(_NO_SUMS.encode()))
        os.fsync(stream.fileno())
    file.chmod(0o644)  # replicas of another user map it, too
    return size


def _padded(parts: Sequence[Part]) -> list[Part]:
    padded = []
    for part in parts:
        padded.append(part)
        if missing := -part.num_bytes % ALIGNMENT:
            padded.append(Part(f"{part.name}.padding", "U8", [missing], missing, partial(bytes, missing)))
    return padded


def _head(head: Sequence[Part], body: Sequence[Part]) -> tuple[bytes, int]:
    """What comes before the first tensor, without the checksums; and the size of the file."""
    offset, entries = 0, {}
    for part in (*head, *body):
        end = offset + part.num_bytes
        entries[part.name] = {"dtype": part.dtype, "shape": list(part.shape), "data_offsets": [offset, end]}
        offset = end

    def header(header_bytes: int) -> bytes:
        head_bytes = 8 + header_bytes + sum(part.num_bytes for part in head)
        sizes = {"head_bytes": f"{head_bytes:015}", "file_bytes": f"{8 + header_bytes + offset:015}"}
        content = {"__metadata__": {"crc32": _NO_SUMS, **sizes}, **entries}
        return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()

    unpadded = len(header(0))
    header_bytes = unpadded + -(8 + unpadded) % ALIGNMENT
    start = header_bytes.to_bytes(8, "little") + header(header_bytes).ljust(header_bytes)
    return start, len(start) + offset


def _write(descriptor: int, content: memoryview | bytes) -> None:
    rest = memoryview(content).cast("B")
    while rest:  # a write may end early, as at a limit of the file's size
        rest = rest[os.write(descriptor, rest) :]


class CheckedFile:
    """An open file whose head is as it was written. It stays open, so that what was mapped can be checked later, even
    if the file has been removed meanwhile. Created by `open`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise DamagedFile("it is not a regular file")
        self.size = status.st_size
        with _as_damage():
            self._body_sum = self._check_head()

    @classmethod
    def open(cls, path: Path) -> CheckedFile:
        """Raises FileNotFoundError, and DamagedFile when the head is not as it was written or cannot be read."""
        with _as_damage():
            # Without O_NONBLOCK, a FIFO in its place would be waited for.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        return cls(path, descriptor)

    def is_in_place(self) -> bool:
        """Whether the path still leads to this file."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._descriptor))
        except OSError:
            return False

    def forget_pages(self) -> None:
        """Drops what the system caches of the file, so that the next check reads the disk."""
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def check(self, share: float = 1.0) -> None:
        """Reads the whole file; raises DamagedFile. `share` is that of the time in which it works, in (0, 1].

        It reads and does not map: a disk error is an error here, and ends a process that reads mapped memory.
        """
        with _as_damage():
            self._check_head()
            found = 0
            for chunk in self._chunks(self._head_bytes, self.size, share):
                found = zlib.crc32(chunk, found)
        if found != self._body_sum:
            raise DamagedFile(f"its content has the CRC-32 {found:08x}; wanted {self._body_sum:08x}")

    def _check_head(self) -> int:
        """Returns the checksum of the body."""
        size = os.fstat(self._descriptor).st_size
        start = next(self._chunks(0, min(size, _CHUNK_BYTES)), b"")
        found = _START.match(start)
        if not found:
            raise DamagedFile("its first bytes are not those of the format")
        head_sum, body_sum = (int(found[group], 16) for group in (2, 3))
        self._head_bytes, file_bytes = int(found[4]), int(found[5])
        if size != file_bytes:
            raise DamagedFile(f"it has {size} bytes; wanted {file_bytes}, by its header")
        if not found.end() <= self._head_bytes <= size:
            raise DamagedFile(f"its head has {self._head_bytes} bytes by its header, and the file has {size}")
        begin, end = found.span("sums")
        seen = zlib.crc32(_NO_SUMS.encode(), zlib.crc32(start[:begin]))
        for chunk in self._chunks(end, self._head_bytes):
            seen = zlib.crc32(chunk, seen)
        if seen != head_sum:
            raise DamagedFile(f"its header has the CRC-32 {seen:08x}; wanted {head_sum:08x}")
        return body_sum

    def _chunks(self, begin: int, end: int, share: float = 1.0) -> Iterator[memoryview]:
        """The bytes from `begin` to `end`, in one buffer."""
        buffer = memoryview(bytearray(min(_CHUNK_BYTES, max(0, end - begin))))
        while begin < end:
            since = time.perf_counter()
            num_bytes = os.preadv(self._descriptor, [buffer[: end - begin]], begin)
            if not num_bytes:
                raise DamagedFile(f"it ends after {begin} bytes; wanted {end}")
            yield buffer[:num_bytes]
            begin += num_bytes
            if share < 1:
                time.sleep((time.perf_counter() - since) * (1 / share - 1))


_UNREADABLE = (errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.EACCES, errno.ENXIO, errno.ELOOP)
"""Errors of the file itself: the disk, the file system, its mode, a socket or a circle of links in its place."""


@contextmanager
def _as_damage() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _UNREADABLE:
            raise
        raise DamagedFile(f"it cannot be read: {error.strerror}") from error
