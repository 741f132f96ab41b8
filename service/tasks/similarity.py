"""Semantic matching of two texts, by a fine-tuned pair classifier or as a choice between two readings (UniMC)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.domain import Encoding, Labels, Output
from service.tasks.choice import Choice, encode_choices, probabilities
from service.tasks.classification import softmax
from service.tasks.rows import encode_rows
from service.tasks.task import Task, Truncation
from service.tasks.text_model import TextModel

READINGS = ("不能理解为：{}", "可以理解为：{}")
"""How the second text is put as two options over the first: different, same (upstream's words)."""


@dataclass(frozen=True, slots=True)
class SimilarityQuery:
    pairs: tuple[tuple[str, str], ...]
    truncation: Truncation = "right"


@dataclass(frozen=True, slots=True)
class SimilarityResult:
    """`score` is the probability, 0 to 1, that both texts mean the same."""

    score: float
    tokens: int
    truncated: bool


def can(model: TextModel, query: SimilarityQuery) -> bool:
    return model.can_choose or "similarity" in model.tasks


def encode(model: TextModel, query: SimilarityQuery) -> list[Encoding]:
    if model.kind == "sequence-classification":
        return encode_rows(model, query.pairs, Labels(), query.truncation)
    choices = [as_choice(first, second) for first, second in query.pairs]
    return encode_choices(model, choices, query.truncation, options_field="inputs[{index}][1]")


def as_choice(first: str, second: str) -> Choice:
    return Choice(tuple(reading.format(second) for reading in READINGS), (first,))


def decode(
    model: TextModel, query: SimilarityQuery, encodings: Sequence[Encoding], outputs: Sequence[Output]
) -> list[SimilarityResult]:
    return [
        SimilarityResult(float(_both(model, output)[1]), encoding.num_tokens, encoding.truncated)
        for encoding, output in zip(encodings, outputs, strict=True)
    ]


def _both(model: TextModel, output: Output) -> Sequence[float]:
    scores = softmax(output.scores[0]) if model.kind == "sequence-classification" else probabilities(output)
    return [float(score) for score in scores]


SIMILARITY: Task[SimilarityQuery, SimilarityResult] = Task("similarity", can, encode, decode)
