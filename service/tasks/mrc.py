"""Multiple-choice reading comprehension: selects the choice that answers a question about a passage (UniMC)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.domain import Encoding, Output
from service.tasks.task import NUMBER_BYTES, Prediction, Task, Truncation
from service.tasks.text_model import TextModel
from service.tasks.unimc import Choice, encode_choices, probabilities


@dataclass(frozen=True, slots=True)
class Reading:
    passage: str
    question: str
    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MrcQuery:
    inputs: tuple[Reading, ...]
    truncation: Truncation = "right"


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
    return model.can_choose


def encode(model: TextModel, query: MrcQuery) -> list[Encoding]:
    choices = [Choice(item.choices, (item.passage,), item.question) for item in query.inputs]
    return encode_choices(model, choices, query.truncation, must_differ=True)


def decode(
    model: TextModel, query: MrcQuery, encodings: Sequence[Encoding], outputs: Sequence[Output]
) -> list[MrcResult]:
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
    return sum(
        NUMBER_BYTES * len(reading.choices) + max(len(choice.encode()) for choice in reading.choices)
        for reading in query.inputs
    )


def predict(query: MrcQuery, result: MrcResult) -> Prediction:
    return Prediction(None, result.score)


MRC: Task[MrcQuery, MrcResult] = Task(
    "mrc", can, encode, decode, needs="a masked LM (UniMC)", reply_bytes=reply_bytes, predict=predict
)
