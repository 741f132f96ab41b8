"""Classification: by the labels of a fine-tuned head, or zero-shot by labels given in the request (UniMC)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from service.domain import Encoding, FloatArray, Labels, Output
from service.tasks.choice import Choice, encode_choices, probabilities, yes_probabilities
from service.tasks.rows import encode_rows
from service.tasks.task import LabelScore, Task, Truncation
from service.tasks.text_model import TextModel


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    text_pair: str | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.text,) if self.text_pair is None else (self.text, self.text_pair)


@dataclass(frozen=True, slots=True)
class ClassifyQuery:
    """With `labels` the answer is zero-shot; without, it has the labels of the model's own head."""

    inputs: tuple[Text, ...]
    labels: tuple[str, ...] = ()
    question: str | None = None
    multi_label: bool = False
    top_k: int | None = None
    truncation: Truncation = "right"


@dataclass(frozen=True, slots=True)
class ClassifyResult:
    """`scores` is sorted, best first, and cut to `top_k`."""

    label: str
    score: float
    scores: tuple[LabelScore, ...]
    tokens: int
    truncated: bool


def can(model: TextModel, query: ClassifyQuery) -> bool:
    return model.can_choose if query.labels else model.kind == "sequence-classification"


def encode(model: TextModel, query: ClassifyQuery) -> list[Encoding]:
    if not query.labels:
        return encode_rows(model, [item.parts for item in query.inputs], Labels(), query.truncation)
    choices = [Choice(query.labels, item.parts, query.question) for item in query.inputs]
    return encode_choices(model, choices, query.truncation, options_field="labels")


def decode(
    model: TextModel, query: ClassifyQuery, encodings: Sequence[Encoding], outputs: Sequence[Output]
) -> list[ClassifyResult]:
    labels = query.labels or model.labels
    return [
        _result(ranked(labels, _scores(query, output)), query.top_k, encoding)
        for encoding, output in zip(encodings, outputs, strict=True)
    ]


def ranked(labels: Iterable[str], scores: FloatArray) -> tuple[LabelScore, ...]:
    """Labels with their scores, best first; equal scores keep the order of the labels."""
    pairs = [LabelScore(label, float(score)) for label, score in zip(labels, scores, strict=True)]
    return tuple(sorted(pairs, key=lambda pair: -pair.score))


def softmax(logits: FloatArray) -> FloatArray:
    """Over the last axis, in float64."""
    exact = logits.astype(np.float64)
    weights = np.exp(exact - exact.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


def _scores(query: ClassifyQuery, output: Output) -> FloatArray:
    if not query.labels:
        return softmax(output.scores[0])
    return yes_probabilities(output) if query.multi_label else probabilities(output)


def _result(scores: tuple[LabelScore, ...], top_k: int | None, encoding: Encoding) -> ClassifyResult:
    best = scores[0]
    return ClassifyResult(best.label, best.score, scores[:top_k], encoding.num_tokens, encoding.truncated)


CLASSIFY: Task[ClassifyQuery, ClassifyResult] = Task("classify", can, encode, decode)
