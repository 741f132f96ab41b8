"""Classification: by the labels of a fine-tuned head, or zero-shot by the labels of the request (UniMC)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.domain import Encoding, FloatArray, Labels, Output
from service.tasks.rows import encode_rows
from service.tasks.scores import LabelScore, rank, softmax
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
    """`scores` holds the `top_k` best labels, best first."""

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
    return [
        _result(rank(_labels(model, query, output), _scores(query, output)), query.top_k, encoding)
        for encoding, output in zip(encodings, outputs, strict=True)
    ]


def _labels(model: TextModel, query: ClassifyQuery, output: Output) -> tuple[str, ...]:
    """The labels of the query, else of the model. A head without label names gets LABEL_0, LABEL_1, ..., as in
    transformers."""
    return query.labels or model.labels or tuple(f"LABEL_{index}" for index in range(output.scores.shape[1]))


def _scores(query: ClassifyQuery, output: Output) -> FloatArray:
    if not query.labels:
        return softmax(output.scores[0])
    return yes_probabilities(output) if query.multi_label else probabilities(output)


def _result(scores: tuple[LabelScore, ...], top_k: int | None, encoding: Encoding) -> ClassifyResult:
    best = scores[0]
    return ClassifyResult(best.label, best.score, scores[:top_k], encoding.num_tokens, encoding.truncated)


def reply_bytes(model: TextModel, query: ClassifyQuery) -> int:
    sizes = [SCORE_BYTES + len(label.encode()) for label in query.labels or model.labels]
    per_input = sum(sorted(sizes, reverse=True)[: query.top_k]) + max(sizes, default=0)
    return len(query.inputs) * per_input


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
    own_labels=lambda model: model.labels,
)
