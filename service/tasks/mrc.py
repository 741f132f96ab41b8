"""Reading comprehension: answers a question about a passage.

With choices a UniMC model selects one of them; without, a question-answering model finds a span of the passage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from service.domain import Encoding, FloatArray, Output
from service.tasks import extraction
from service.tasks.extraction import SpanOptions, SpanResult
from service.tasks.task import NUMBER_BYTES, Prediction, Task, Truncation
from service.tasks.text_model import TextModel
from service.tasks.unimc import Choice, encode_choices, probabilities
from service.tasks.windows import (
    LongTexts,
    Numbers,
    Place,
    TextWindow,
    WindowOptions,
    pool,
    read_in_windows,
    text_window,
    with_window,
)

LABELS = ("no_answer", "answer")
"""The predicted labels without choices."""


@dataclass(frozen=True, slots=True)
class Reading:
    passage: str
    question: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MrcQuery:
    """With `spans` the answers are spans of the passages; without, every input has choices.

    With `windows` a long passage with choices is read in windows; where spans answer it always is.
    """

    inputs: tuple[Reading, ...]
    truncation: Truncation = "right"
    spans: SpanOptions | None = None
    windows: WindowOptions | None = None

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


@dataclass(frozen=True, slots=True, kw_only=True)
class MrcWindowResult(MrcResult):
    """`window` is the one in which the answer has its highest score."""

    window: TextWindow


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
        _result(reading, probabilities(output), [encoding])
        for reading, encoding, output in zip(query.inputs, encodings, outputs, strict=True)
    ]


def _result(reading: Reading, scores: FloatArray, rows: Sequence[Encoding]) -> MrcResult:
    index = int(scores.argmax())
    return MrcResult(
        answer=reading.choices[index],
        index=index,
        score=float(scores[index]),
        scores=tuple(float(score) for score in scores),
        tokens=sum([row.num_tokens for row in rows]),
        truncated=any(row.truncated for row in rows),
    )


def _with_texts(query: MrcQuery, parts: Sequence[tuple[int, str]]) -> MrcQuery:
    return replace(
        query, inputs=tuple(replace(query.inputs[index], passage=text) for index, text in parts), windows=None
    )


def _merge(
    model: TextModel,
    query: MrcQuery,
    scores: Numbers,
    places: Sequence[Place],
    rows: Sequence[Encoding],
) -> MrcResult:
    """By default the window that is most certain decides: the others need not hold the answer."""
    pooling = (query.windows and query.windows.pooling) or "max"
    pooled = pool(scores, places, pooling, sum_to_one=scores.shape[1] > 1)
    result = _result(query.inputs[places[0].input], pooled, rows)
    return with_window(MrcWindowResult, result, text_window(places, int(scores[:, result.index].argmax())))


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


MRC: Task[MrcQuery, MrcResult | SpanResult] = read_in_windows(
    Task(
        "mrc",
        can,
        encode,
        decode,
        needs="a masked LM (UniMC) and `choices` in every input, or a question-answering model (a checkpoint with "
        "`qa_outputs`) and no `choices`",
        with_missing=lambda query: ("inputs[0].choices", replace(query, spans=None)) if query.spans else None,
        num_inputs=lambda query: len(query.inputs),
        reply_bytes=reply_bytes,
        predict=predict,
        own_labels=lambda model: LABELS if extraction.can_extract(model) else (),
    ),
    LongTexts(
        path="inputs[{}].passage",
        options=lambda query: query.windows,
        texts=lambda query: query.passages,
        with_texts=_with_texts,
        score=lambda model, query, encodings, outputs: [probabilities(output) for output in outputs],
        merge=_merge,
    ),
)
