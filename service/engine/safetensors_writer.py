"""Writes a safetensors file tensor by tensor, and checks one: the library writes only what is in memory as a whole.

The format: eight bytes with the length of the header, the header as JSON, the bytes of the tensors one after another,
all little-endian. The CRC-32 of the whole file, taken with zeros in its own place, stands in the header's metadata.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

_CODES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_ALIGNMENT = 64  # of the first tensor; the library asks for 8
_CHUNK_BYTES = 1 << 20
_BLANK = "0" * 8


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor to write; `read` may give it in another floating point type."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def num_bytes(entries: Sequence[Entry], dtype: torch.dtype) -> int:
    """Of the tensors, without the header."""
    return sum(_size(entry, dtype) for entry in entries)


def write(file: Path, entries: Sequence[Entry], dtype: torch.dtype, tell: Callable[[int], None]) -> None:
    """Writes the tensors as `dtype` and waits for the disk; `tell` hears the bytes done. OSError when it is full."""
    header = _header(entries, dtype)
    done, checksum = 0, zlib.crc32(header)
    with file.open("wb") as stream:
        stream.write(header)
        for entry in entries:
            content = _bytes_of(entry.read().to(dtype))
            checksum = zlib.crc32(content, checksum)
            stream.write(content)
            done += content.nbytes
            tell(done)
        stream.seek(0)
        stream.write(_with_checksum(header, checksum))
        stream.flush()
        os.fsync(stream.fileno())


def is_sound(file: Path) -> bool:
    """Whether the disk holds what was written, by the checksum; what memory still holds of the file is dropped."""
    with file.open("rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        header = _read_header(stream)
        checksum = zlib.crc32(_with_checksum(header, None))
        chunk = memoryview(bytearray(_CHUNK_BYTES))
        while size := stream.readinto(chunk):
            checksum = zlib.crc32(chunk[:size], checksum)
    return header == _with_checksum(header, checksum)


def _header(entries: Sequence[Entry], dtype: torch.dtype) -> bytes:
    """With the length in front and a blank checksum, which stands first, at a place that is always the same."""
    table: dict[str, object] = {"__metadata__": {"crc32": _BLANK, "format": "pt"}}
    offset = 0
    for entry in entries:
        end = offset + _size(entry, dtype)
        table[entry.name] = {"dtype": _CODES[dtype], "shape": entry.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(table).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


_BEFORE_CHECKSUM = 8 + len('{"__metadata__": {"crc32": "')


def _with_checksum(header: bytes, checksum: int | None) -> bytes:
    value = _BLANK if checksum is None else f"{checksum:08x}"
    return header[:_BEFORE_CHECKSUM] + value.encode() + header[_BEFORE_CHECKSUM + len(value) :]


def _read_header(stream: BinaryIO) -> bytes:
    length = stream.read(8)
    return length + stream.read(int.from_bytes(length, "little"))


def _size(entry: Entry, dtype: torch.dtype) -> int:
    return torch.Size(entry.shape).numel() * dtype.itemsize


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
