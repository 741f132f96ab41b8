"""Semantic similarity of two texts, by a fine-tuned pair classifier or zero-shot (UniMC)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.domain import Encoding, Output
from service.tasks import unimc
from service.tasks.task import Prediction, Task, Truncation
from service.tasks.text_model import TextModel
from service.tasks.unimc import Choice

READINGS = ("不能理解为：{}", "可以理解为：{}")
"""Templates that turn the second text into two options for the first, in the order of LABELS. Source: upstream."""
SAME = "相似"
NAMES = ("不相似", SAME)
"""The labels that make a classifier one of similarity, in upstream's order."""
LABELS = ("different", "same")
"""The predicted label for a score below 0.5, and for one of 0.5 or more."""


@dataclass(frozen=True, slots=True)
class SimilarityQuery:
    pairs: tuple[tuple[str, str], ...]
    truncation: Truncation = "right"


@dataclass(frozen=True, slots=True)
class SimilarityResult:
    """`score` is the probability, 0 to 1, that the two texts have the same meaning."""

    score: float
    tokens: int
    truncated: bool


def can(model: TextModel, query: SimilarityQuery) -> bool:
    return unimc.can_compare(model, "similarity", READINGS) or _is_cross_encoder(model)


def _is_cross_encoder(model: TextModel) -> bool:
    """Whether the model has one output, the probability that two texts have the same meaning."""
    has_one_output = model.head is not None and model.head.num_classes == 1
    return has_one_output and "similarity" in model.tasks and unimc.gives_probabilities(model)


def encode(model: TextModel, query: SimilarityQuery) -> list[Encoding]:
    return unimc.encode_pairs(model, query.pairs, READINGS, query.truncation)


def as_choice(first: str, second: str) -> Choice:
    return unimc.pair_as_choice((first, second), READINGS)


def decode(
    model: TextModel, query: SimilarityQuery, encodings: Sequence[Encoding], outputs: Sequence[Output]
) -> list[SimilarityResult]:
    return [
        SimilarityResult(
            float(unimc.class_probabilities(model, output)[_same(model)]), encoding.num_tokens, encoding.truncated
        )
        for encoding, output in zip(encodings, outputs, strict=True)
    ]


def _same(model: TextModel) -> int:
    """Index of the class "same": the one with that label in the model's head, else the second, as in upstream, or the
    only one."""
    if SAME in model.labels:
        return model.labels.index(SAME)
    return 0 if _is_cross_encoder(model) else 1


def hint(model: TextModel) -> str | None:
    if model.head and model.head.num_classes == 1:
        return unimc.label_hint(model, "its output is the probability that two texts mean the same", (SAME,))
    return unimc.label_hint(model, "its classes are different and same meaning of a pair", NAMES)


def predict(query: SimilarityQuery, result: SimilarityResult) -> Prediction:
    is_same = result.score >= 0.5
    return Prediction(LABELS[is_same], result.score if is_same else 1.0 - result.score)


SIMILARITY: Task[SimilarityQuery, SimilarityResult] = Task(
    "similarity",
    can,
    encode,
    decode,
    needs="a masked LM (UniMC), or a model fine-tuned for similarity",
    hint=hint,
    predict=predict,
    own_labels=lambda model: LABELS,
)
