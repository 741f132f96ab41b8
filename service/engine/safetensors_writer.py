"""Writes a safetensors file with a checksum, and checks one: the library has none, and would copy all tensors at once.

The format: eight bytes with the length of the header, the header as JSON, the bytes of the tensors one after another,
all little-endian. The CRC-32 of the whole file, taken with zeros in its own place, stands in the header's metadata.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

_CODES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}
_ALIGNMENT = 64  # a line of the cache; the library asks for 8 bytes
_CHUNK_BYTES = 1 << 20
_BLANK = "0" * 8


def num_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Of the tensors, without the header."""
    return sum(tensor.nbytes for tensor in tensors.values())


def write(file: Path, tensors: Mapping[str, Tensor], tell: Callable[[int], None]) -> None:
    """Writes the tensors and waits for the disk; `tell` hears the bytes done. OSError when it is full.

    Those of whole multiples of 64 bytes stand first, so that each of them begins at one.
    """
    in_order = dict(sorted(tensors.items(), key=lambda pair: pair[1].nbytes % _ALIGNMENT != 0))
    header = _header(in_order)
    done, checksum = 0, zlib.crc32(header)
    with file.open("wb") as stream:
        stream.write(header)
        for tensor in in_order.values():
            content = _bytes_of(tensor)
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


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    """With the length in front and a blank checksum, which stands first, at a place that is always the same."""
    table: dict[str, object] = {"__metadata__": {"crc32": _BLANK, "format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        table[name] = {"dtype": _CODES[tensor.dtype], "shape": tensor.shape, "data_offsets": [offset, end]}
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


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
