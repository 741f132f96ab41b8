"""Natural-language inference: does a hypothesis follow from a premise, by a fine-tuned head or as a choice (UniMC)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.domain import Encoding, Labels, Output
from service.tasks.choice import Choice, encode_choices, probabilities
from service.tasks.classification import ranked, softmax
from service.tasks.rows import encode_rows
from service.tasks.task import LabelScore, Task, Truncation
from service.tasks.text_model import TextModel

LABELS = ("contradiction", "neutral", "entailment")
READINGS = ("不能推断出：{}", "很难推断出：{}", "可以推断出：{}")
"""The hypothesis as three options over the premise, in the order of LABELS (upstream's words)."""


@dataclass(frozen=True, slots=True)
class NliQuery:
    """Pairs of (premise, hypothesis)."""

    pairs: tuple[tuple[str, str], ...]
    truncation: Truncation = "right"


@dataclass(frozen=True, slots=True)
class NliResult:
    """`scores` holds the three labels, best first."""

    label: str
    score: float
    scores: tuple[LabelScore, ...]
    tokens: int
    truncated: bool


def can(model: TextModel, query: NliQuery) -> bool:
    return model.can_choose or "nli" in model.tasks


def encode(model: TextModel, query: NliQuery) -> list[Encoding]:
    if model.kind == "sequence-classification":
        return encode_rows(model, query.pairs, Labels(), query.truncation)
    choices = [as_choice(premise, hypothesis) for premise, hypothesis in query.pairs]
    return encode_choices(model, choices, query.truncation, options_field="inputs[{index}][1]")


def as_choice(premise: str, hypothesis: str) -> Choice:
    return Choice(tuple(reading.format(hypothesis) for reading in READINGS), (premise,))


def decode(
    model: TextModel, query: NliQuery, encodings: Sequence[Encoding], outputs: Sequence[Output]
) -> list[NliResult]:
    return [_result(model, encoding, output) for encoding, output in zip(encodings, outputs, strict=True)]


def _result(model: TextModel, encoding: Encoding, output: Output) -> NliResult:
    scores = softmax(output.scores[0]) if model.kind == "sequence-classification" else probabilities(output)
    sorted_scores = ranked(LABELS, scores)
    best = sorted_scores[0]
    return NliResult(best.label, best.score, sorted_scores, encoding.num_tokens, encoding.truncated)


NLI: Task[NliQuery, NliResult] = Task("nli", can, encode, decode)
