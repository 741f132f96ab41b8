"""Classification: by the labels of a fine-tuned head, or zero-shot by the labels of the request (UniMC).

What the scores of a head are follows from its `activation`: probabilities that sum to 1 (softmax), an independent
probability for each label (sigmoid), or the outputs themselves (regression).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.domain import Encoding, FloatArray, Labels, Output
from service.tasks.rows import encode_rows
from service.tasks.scores import LabelScore, activate, rank
from service.tasks.task import Prediction, Task, Truncation
from service.tasks.text_model import TextModel
from service.tasks.unimc import Choice, encode_choices, probabilities, yes_probabilities

SCORE_BYTES = 45
"""A label's score in JSON, without the label."""


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    text_pair: str | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.text,) if self.text_pair is None else (self.text, self.text_pair)


@dataclass(frozen=True, slots=True)
class ClassifyQuery:
    """A query with `labels` is zero-shot; a query without them uses the labels of the model's own head."""

    inputs: tuple[Text, ...]
    labels: tuple[str, ...] = ()
    question: str | None = None
    multi_label: bool = False
    top_k: int | None = None
    truncation: Truncation = "right"


@dataclass(frozen=True, slots=True)
class ClassifyResult:
    """`scores` holds the `top_k` best labels, best first. Scores are from 0 to 1, except those of a regression."""

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
    return encode_choices(model, choices, query.truncation, options_field="labels", must_differ=True)


def decode(
    model: TextModel, query: ClassifyQuery, encodings: Sequence[Encoding], outputs: Sequence[Output]
) -> list[ClassifyResult]:
    labels = query.labels or head_labels(model)
    return [
        _result(rank(labels, _scores(model, query, output), query.top_k), encoding)
        for encoding, output in zip(encodings, outputs, strict=True)
    ]


def head_labels(model: TextModel) -> tuple[str, ...]:
    """The labels of the model's head; without names LABEL_0, LABEL_1, ..., as in transformers."""
    if model.labels or model.head is None:
        return model.labels
    return tuple(f"LABEL_{index}" for index in range(model.head.num_classes))


def _scores(model: TextModel, query: ClassifyQuery, output: Output) -> FloatArray:
    if model.head:
        return activate(output.scores[0], model.head.activation)
    return yes_probabilities(output) if query.multi_label else probabilities(output)


def _result(scores: tuple[LabelScore, ...], encoding: Encoding) -> ClassifyResult:
    best = scores[0]
    return ClassifyResult(best.label, best.score, scores, encoding.num_tokens, encoding.truncated)


def reply_bytes(model: TextModel, query: ClassifyQuery) -> int:
    sizes = [SCORE_BYTES + len(label.encode()) for label in query.labels or head_labels(model)]
    per_input = sum(sorted(sizes, reverse=True)[: query.top_k]) + max(sizes, default=0)
    return len(query.inputs) * per_input


def decides(model: TextModel) -> bool:
    """Whether a result is a decision: the number of a regression is none."""
    return model.head is None or model.head.activation != "identity"


def predict(query: ClassifyQuery, result: ClassifyResult) -> Prediction:
    return Prediction(None if query.labels else result.label, result.score)


CLASSIFY: Task[ClassifyQuery, ClassifyResult] = Task(
    "classify",
    can,
    encode,
    decode,
    needs="a masked LM (UniMC) and `labels` in the request, or a fine-tuned classifier and no `labels`",
    reply_bytes=reply_bytes,
    predict=predict,
    decides=decides,
    own_labels=lambda model: model.labels,
)
