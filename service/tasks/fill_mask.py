"""Fill-mask: the most probable tokens for every `[MASK]` in a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from service.domain import Encoding, Output, TopTokens
from service.errors import InvalidRequest
from service.tasks.rows import encode_row, read_texts
from service.tasks.task import Task, Truncation
from service.tasks.text_model import TextModel

MASK = "[MASK]"
TOKEN_BYTES = 48
"""A token and its score in JSON."""


@dataclass(frozen=True, slots=True)
class FillMaskQuery:
    inputs: tuple[str, ...]
    top_k: int = 5
    truncation: Truncation = "right"


@dataclass(frozen=True, slots=True)
class TokenProbability:
    token: str
    score: float


@dataclass(frozen=True, slots=True)
class FillMaskResult:
    """`masks` holds, for each mask in text order, the `top_k` most probable tokens, best first."""

    masks: tuple[tuple[TokenProbability, ...], ...]
    tokens: int
    truncated: bool


def can(model: TextModel, query: FillMaskQuery) -> bool:
    return model.kind == "masked-lm"


def encode(model: TextModel, query: FillMaskQuery) -> list[Encoding]:
    vocab_size = model.tokenizer.get_vocab_size()
    if query.top_k > vocab_size:
        raise InvalidRequest.of("top_k", f"is {query.top_k}; the vocabulary of {model.name} has {vocab_size} tokens")
    return [_encode(model, text, query, f"inputs[{index}]") for index, text in enumerate(query.inputs)]


def decode(
    model: TextModel, query: FillMaskQuery, encodings: Sequence[Encoding], outputs: Sequence[Output]
) -> list[FillMaskResult]:
    token = cache(model.token)
    return [
        FillMaskResult(_masks(token, output), encoding.num_tokens, encoding.truncated)
        for encoding, output in zip(encodings, outputs, strict=True)
    ]


def reply_bytes(model: TextModel, query: FillMaskQuery) -> int:
    return sum(text.count(MASK) for text in query.inputs) * query.top_k * TOKEN_BYTES


def _encode(model: TextModel, text: str, query: FillMaskQuery, field: str) -> Encoding:
    pieces = text.split(MASK)
    if len(pieces) == 1:
        raise InvalidRequest.of(field, f"has no {MASK}")
    strips_before, strips_after = model.mask_strips
    pieces = [piece.rstrip() if strips_before else piece for piece in pieces[:-1]] + pieces[-1:]
    pieces = pieces[:1] + [piece.lstrip() if strips_after else piece for piece in pieces[1:]]
    first, *rest = read_texts(model, pieces, model.max_length, query.truncation)
    tokens = [*first, *(token for piece in rest for token in (model.mask, *piece))]
    row = encode_row(model, [tokens], TopTokens((), query.top_k), query.truncation, field, model.max_length)
    positions = tuple(index for index, token in enumerate(row.ids.tolist()) if token == model.mask)
    if len(positions) < len(rest):
        limit = f"within the {model.max_length} tokens that the model reads"
        raise InvalidRequest.of(field, f"only {len(positions)} of its {len(rest)} {MASK} are {limit}")
    return replace(row, readout=TopTokens(positions, query.top_k))


def _masks(token: Callable[[int], str], output: Output) -> tuple[tuple[TokenProbability, ...], ...]:
    if output.ids is None:
        raise ValueError("a TopTokens readout came back without token ids")
    return tuple(
        tuple(map(TokenProbability, map(token, ids), scores))
        for ids, scores in zip(output.ids.tolist(), output.scores.tolist(), strict=True)
    )


FILL_MASK: Task[FillMaskQuery, FillMaskResult] = Task(
    "fill-mask", can, encode, decode, needs="a masked LM", reply_bytes=reply_bytes
)
