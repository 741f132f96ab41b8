"""Reading comprehension: answers a question about a passage.

With choices a UniMC model selects one of them; without, a question-answering model finds a span of the passage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.domain import Encoding, Output
from service.tasks import extraction
from service.tasks.extraction import SpanOptions, SpanResult
from service.tasks.task import NUMBER_BYTES, Prediction, Task, Truncation
from service.tasks.text_model import TextModel
from service.tasks.unimc import Choice, encode_choices, probabilities

LABELS = ("no_answer", "answer")
"""The predicted labels without choices."""


@dataclass(frozen=True, slots=True)
class Reading:
    passage: str
    question: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MrcQuery:
    """With `spans` the answers are spans of the passages; without, every input has choices."""

    inputs: tuple[Reading, ...]
    truncation: Truncation = "right"
    spans: SpanOptions | None = None

    @property
    def passages(self) -> list[str]:
        return [reading.passage for reading in self.inputs]


@dataclass(frozen=True, slots=True)
class MrcResult:
    """`scores` is in the order of the choices; `index` is the position of the best one, `answer` its text."""

    answer: str
    index: int
    score: float
    scores: tuple[float, ...]
    tokens: int
    truncated: bool


def can(model: TextModel, query: MrcQuery) -> bool:
    return extraction.can_extract(model) if query.spans else model.can_choose


def encode(model: TextModel, query: MrcQuery) -> list[Encoding]:
    if query.spans:
        questions = [reading.question for reading in query.inputs]
        return extraction.encode_windows(model, query.passages, questions, query.spans, query.truncation)
    choices = [Choice(item.choices, (item.passage,), item.question) for item in query.inputs]
    return encode_choices(model, choices, query.truncation, must_differ=True)


def decode(
    model: TextModel, query: MrcQuery, encodings: Sequence[Encoding], outputs: Sequence[Output]
) -> list[MrcResult | SpanResult]:
    if query.spans:
        return [*extraction.decode_windows(query.passages, query.spans, encodings, outputs)]
    return [
        _result(reading, encoding, output)
        for reading, encoding, output in zip(query.inputs, encodings, outputs, strict=True)
    ]


def _result(reading: Reading, encoding: Encoding, output: Output) -> MrcResult:
    scores = probabilities(output)
    index = int(scores.argmax())
    return MrcResult(
        answer=reading.choices[index],
        index=index,
        score=float(scores[index]),
        scores=tuple(float(score) for score in scores),
        tokens=encoding.num_tokens,
        truncated=encoding.truncated,
    )


def reply_bytes(model: TextModel, query: MrcQuery) -> int:
    if query.spans:
        return extraction.reply_bytes(query.passages, query.spans)
    return sum(
        NUMBER_BYTES * len(reading.choices) + max(len(choice.encode()) for choice in reading.choices)
        for reading in query.inputs
    )


def predict(query: MrcQuery, result: MrcResult | SpanResult) -> Prediction:
    label = LABELS[result.answer is not None] if query.spans else None
    return Prediction(label, result.score)


MRC: Task[MrcQuery, MrcResult | SpanResult] = Task(
    "mrc",
    can,
    encode,
    decode,
    needs="a masked LM (UniMC) and `choices` in every input, or a question-answering model (a checkpoint with "
    "`qa_outputs`) and no `choices`",
    num_inputs=lambda query: len(query.inputs),
    reply_bytes=reply_bytes,
    predict=predict,
    own_labels=lambda model: LABELS if extraction.can_extract(model) else (),
)
