"""Embedding: one vector per text, pooled from the encoder's final hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from service.domain import Cls, Encoding, FloatArray, Mean, Output
from service.tasks.rows import encode_rows
from service.tasks.task import NUMBER_BYTES, Task, Truncation
from service.tasks.text_model import TextModel


@dataclass(frozen=True, slots=True)
class EmbedQuery:
    inputs: tuple[str, ...]
    pooling: Literal["mean", "cls"] = "mean"
    normalize: bool = True
    truncation: Truncation = "right"


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """`embedding` has the model's hidden size, and L2 norm 1 if the query asks to normalize."""

    embedding: tuple[float, ...]
    tokens: int
    truncated: bool


def can(model: TextModel, query: EmbedQuery) -> bool:
    return True


def encode(model: TextModel, query: EmbedQuery) -> list[Encoding]:
    readout = Mean() if query.pooling == "mean" else Cls()
    return encode_rows(model, [(text,) for text in query.inputs], readout, query.truncation)


def decode(
    model: TextModel, query: EmbedQuery, encodings: Sequence[Encoding], outputs: Sequence[Output]
) -> list[EmbedResult]:
    return [
        EmbedResult(tuple(_vector(output, query.normalize).tolist()), encoding.num_tokens, encoding.truncated)
        for encoding, output in zip(encodings, outputs, strict=True)
    ]


def _vector(output: Output, normalize: bool) -> FloatArray:
    """The embedding, scaled to L2 norm 1 if `normalize`; a zero vector is returned unchanged."""
    vector: FloatArray = output.scores[0]
    norm = np.linalg.norm(vector.astype(np.float64))
    return np.asarray(vector / norm, dtype=np.float32) if normalize and norm > 0 else vector


def reply_bytes(model: TextModel, query: EmbedQuery) -> int:
    return len(query.inputs) * model.hidden_size * NUMBER_BYTES


EMBED: Task[EmbedQuery, EmbedResult] = Task("embed", can, encode, decode, needs="any model", reply_bytes=reply_bytes)
