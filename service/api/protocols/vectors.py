"""Embeddings as the protocols have them: of texts or token ids, cut to fewer dimensions, as floats or as base64."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from service.errors import InvalidRequest
from service.settings import Server
from service.slices import between_slices
from service.tasks.embedding import EmbedQuery, EmbedResult

IDS_PER_INPUT = 512
"""Token ids of an input, on average over those of the largest request."""

Vector = Sequence[float]


def max_values(limits: Server) -> int:
    """JSON values of a request with token ids."""
    return limits.max_inputs * IDS_PER_INPUT + 1000


def embed_query(given: Sequence[Any], **more: Any) -> EmbedQuery:
    """Of texts, or of lists of token ids."""
    if isinstance(given[0], str):
        return EmbedQuery(tuple(given), **more)
    return EmbedQuery((), token_ids=tuple(map(tuple, given)), **more)


def vectors_of(results: Sequence[EmbedResult], dimensions: int | None, *, is_scaled: bool) -> list[Vector]:
    """The vectors, cut to their first numbers, and then scaled to length 1 again if they were so before.

    Raises InvalidRequest if they have fewer dimensions.
    """
    vectors: list[Vector] = [result.embedding for result in results]
    if dimensions is None:
        return vectors
    if vectors and dimensions > len(vectors[0]):
        raise InvalidRequest.of("dimensions", f"is {dimensions}; the vectors of this model have {len(vectors[0])}")
    return [_cut(vector, dimensions, is_scaled) for vector in vectors]


def _cut(vector: Vector, dimensions: int, is_scaled: bool) -> Vector:
    between_slices()
    cut = vector[:dimensions]
    norm = math.sqrt(sum(number * number for number in cut))
    return [number / norm for number in cut] if is_scaled and norm > 0 else cut


def written(vectors: Sequence[Vector], encoding_format: str) -> list[Any]:
    """Each vector for a JSON reply: as a list, or in base64 as little-endian float32."""
    if encoding_format == "base64":
        return [base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode() for vector in vectors]
    return [_as_json(vector) for vector in vectors]


def _as_json(vector: Vector) -> orjson.Fragment:
    """One at a time, because orjson keeps Python's lock while it writes."""
    between_slices()
    return orjson.Fragment(orjson.dumps(list(vector)))
