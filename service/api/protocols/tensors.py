"""Tensors of the Open Inference Protocol v2: a JSON header, and binary data after it.

A tensor's data is in the JSON (nested lists or a flat one, row by row), or follows the JSON as
`binary_data_size` bytes: little-endian numbers, or, for BYTES, elements of a 4-byte little-endian length and as many
bytes.
Source: the specification of the protocol and its binary tensor data extension.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import Any, Literal

import numpy as np
import orjson
from pydantic import Field

from service.api.field_types import Lenient
from service.errors import InvalidRequest, MalformedBody

Datatype = Literal["BYTES", "FP32"]
"""Those that this server sends; it reads BYTES."""
HEADER_LENGTH = "Inference-Header-Content-Length"
_LENGTH = struct.Struct("<I")


class Parameters(Lenient):
    """Parameters of a tensor that are read; others are ignored, as the protocol wants it."""

    binary_data_size: int | None = Field(None, ge=0)
    binary_data: bool | None = None


class InputTensor(Lenient):
    name: str = Field(max_length=64)
    datatype: str = Field(max_length=16)
    shape: list[int] = Field(max_length=8)
    data: list[Any] | None = None
    parameters: Parameters = Parameters()


class OutputTensor(Lenient):
    name: str = Field(max_length=64)
    parameters: Parameters = Parameters()


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor of a reply: numbers as an array, texts as a list of strings in the order of the rows."""

    name: str
    shape: tuple[int, ...]
    data: np.ndarray[Any, Any] | Sequence[str]

    @property
    def datatype(self) -> Datatype:
        return "FP32" if isinstance(self.data, np.ndarray) else "BYTES"


def header_length(value: str, num_bytes: int) -> int:
    """The length of the JSON of a body, by the header that says it. Raises InvalidRequest."""
    if not (value.isascii() and value.isdecimal() and len(value) < 12 and int(value) <= num_bytes):
        raise InvalidRequest.of(HEADER_LENGTH, f"must be a whole number of at most {num_bytes}, the length of the body")
    return int(value)


def read_texts(tensors: Sequence[InputTensor], binary: memoryview, max_elements: int) -> dict[str, list[str]]:
    """The texts of each BYTES tensor by its name; `binary` is what follows the JSON.

    Raises:
        InvalidRequest: another datatype, a shape that does not fit the data, or a name that occurs twice.
        MalformedBody: the binary data is too short, too long, or not UTF-8.
    """
    found: dict[str, list[str]] = {}
    start = 0
    for index, tensor in enumerate(tensors):
        field = f"inputs[{index}]"
        if tensor.datatype != "BYTES":
            raise InvalidRequest.of(f"{field}.datatype", "must be BYTES: every input is text")
        if tensor.name in found:
            raise InvalidRequest.of(f"{field}.name", "repeats the name of another input")
        if min(tensor.shape, default=0) < 0:
            raise InvalidRequest.of(f"{field}.shape", "must not be negative")
        if (wanted := prod(tensor.shape)) > max_elements:
            raise InvalidRequest.of(f"{field}.shape", f"has {wanted} elements; at most {max_elements} are allowed")
        size = tensor.parameters.binary_data_size
        if size is None:
            texts = list(islice(_flatten(tensor.data, field), wanted + 1))
        else:
            if size > len(binary) - start:
                raise MalformedBody(f"{field}: has fewer bytes of binary data than its binary_data_size says")
            texts = list(islice(_elements(binary[start : start + size], field), wanted + 1))
            start += size
        if len(texts) != wanted:
            number = "more" if len(texts) > wanted else str(len(texts))
            raise InvalidRequest.of(f"{field}.shape", f"has {wanted} elements, but the data has {number}")
        found[tensor.name] = texts
    if start != len(binary):
        raise MalformedBody(f"{len(binary) - start} bytes of binary data belong to no input")
    return found


def _flatten(data: list[Any] | None, field: str) -> Iterator[str]:
    """Without recursion: a hostile body is deeply nested."""
    if data is None:
        raise InvalidRequest.of(f"{field}.data", "is required, or binary_data_size")
    open_ones = [iter(data)]
    while open_ones:
        for one in open_ones[-1]:
            if isinstance(one, list):
                open_ones.append(iter(one))
                break
            if not isinstance(one, str):
                raise InvalidRequest.of(f"{field}.data", "must hold strings, in lists or not")
            yield one
        else:
            open_ones.pop()


def _elements(data: memoryview, field: str) -> Iterator[str]:
    start = 0
    while start < len(data):
        if len(data) - start < _LENGTH.size:
            raise MalformedBody(f"{field}: the length of an element is cut off")
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        if length > len(data) - start:
            raise MalformedBody(f"{field}: an element is longer than the rest of the data")
        try:
            yield str(data[start : start + length], "utf-8")
        except UnicodeDecodeError:
            raise MalformedBody(f"{field}: an element is not UTF-8") from None
        start += length


def write(head: dict[str, Any], outputs: Sequence[Output], binary: Sequence[bool]) -> tuple[bytes, int | None]:
    """A reply, and the length of its JSON if binary data follows it; `binary` says of which outputs."""
    tensors, chunks = [], []
    for output, is_binary in zip(outputs, binary, strict=True):
        tensor = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
        if is_binary:
            chunk = _pack(output)
            chunks.append(chunk)
            tensors.append({**tensor, "parameters": {"binary_data_size": len(chunk)}})
        else:
            data = np.ravel(output.data) if isinstance(output.data, np.ndarray) else output.data
            tensors.append({**tensor, "data": data})
    text = orjson.dumps({**head, "outputs": tensors}, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join([text, *chunks]), len(text) if chunks else None


def _pack(output: Output) -> bytes:
    if isinstance(output.data, np.ndarray):
        return output.data.astype("<f4").tobytes()
    elements = [text.encode() for text in output.data]
    return b"".join([part for element in elements for part in (_LENGTH.pack(len(element)), element)])
