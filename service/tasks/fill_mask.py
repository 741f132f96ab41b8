"""Fill-mask: the most probable tokens for every `[MASK]` in a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from service.domain import Encoding, Output, TopTokens
from service.errors import InvalidRequest
from service.tasks.rows import encode_row
from service.tasks.task import Task, Truncation
from service.tasks.text_model import TextModel

MASK = "[MASK]"
MAX_RESPONSE_TOKENS = 100_000
"""Limit on the tokens in one response, over all its masks. Larger responses take hundreds of megabytes to build."""


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
    num_masks = sum(text.count(MASK) for text in query.inputs)
    if num_masks * query.top_k > MAX_RESPONSE_TOKENS:
        limit = f"a response holds at most {MAX_RESPONSE_TOKENS} tokens over all masks"
        raise InvalidRequest.of("top_k", f"is {query.top_k} for each of {num_masks} {MASK}; {limit}")
    return [_encode(model, text, query, f"inputs[{index}]") for index, text in enumerate(query.inputs)]


def decode(
    model: TextModel, query: FillMaskQuery, encodings: Sequence[Encoding], outputs: Sequence[Output]
) -> list[FillMaskResult]:
    return [
        FillMaskResult(_masks(model, output), encoding.num_tokens, encoding.truncated)
        for encoding, output in zip(encodings, outputs, strict=True)
    ]


def _encode(model: TextModel, text: str, query: FillMaskQuery, field: str) -> Encoding:
    pieces = text.split(MASK)
    if len(pieces) == 1:
        raise InvalidRequest.of(field, f"has no {MASK}")
    first, *rest = model.tokenize(pieces, model.max_length, from_end=query.truncation == "left")
    tokens = [*first, *(token for piece in rest for token in (model.mask, *piece))]
    row = encode_row(model, [tokens], TopTokens((), query.top_k), query.truncation, field)
    positions = tuple(index for index, token in enumerate(row.ids.tolist()) if token == model.mask)
    if len(positions) < len(rest):
        limit = f"within the {model.max_length} tokens that the model reads"
        raise InvalidRequest.of(field, f"only {len(positions)} of its {len(rest)} {MASK} are {limit}")
    return replace(row, readout=TopTokens(positions, query.top_k))


def _masks(model: TextModel, output: Output) -> tuple[tuple[TokenProbability, ...], ...]:
    if output.ids is None:
        raise ValueError("a TopTokens readout came back without token ids")
    return tuple(
        tuple(TokenProbability(model.token(int(token)), float(score)) for token, score in zip(ids, scores, strict=True))
        for ids, scores in zip(output.ids, output.scores, strict=True)
    )


FILL_MASK: Task[FillMaskQuery, FillMaskResult] = Task("fill-mask", can, encode, decode, needs="a masked LM")
