"""Natural-language inference between a premise and a hypothesis, by a fine-tuned head or zero-shot (UniMC)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.domain import Encoding, Output
from service.tasks import unimc
from service.tasks.scores import LabelScore, rank
from service.tasks.task import Prediction, Task, Truncation
from service.tasks.text_model import TextModel
from service.tasks.unimc import Choice

LABELS = ("contradiction", "neutral", "entailment")
READINGS = ("不能推断出：{}", "很难推断出：{}", "可以推断出：{}")
"""Templates that turn the hypothesis into three options for the premise, in the order of LABELS. Source: upstream."""

NAMES = ("矛盾", "中立", "蕴含")
_SAME_LABEL = dict(zip(NAMES, LABELS, strict=True)) | {label: label for label in LABELS}


@dataclass(frozen=True, slots=True)
class NliQuery:
    """`pairs` are (premise, hypothesis)."""

    pairs: tuple[tuple[str, str], ...]
    truncation: Truncation = "right"


@dataclass(frozen=True, slots=True)
class NliResult:
    """`scores` holds all three labels, best first."""

    label: str
    score: float
    scores: tuple[LabelScore, ...]
    tokens: int
    truncated: bool


def can(model: TextModel, query: NliQuery) -> bool:
    return unimc.can_compare(model, "nli", READINGS)


def encode(model: TextModel, query: NliQuery) -> list[Encoding]:
    return unimc.encode_pairs(model, query.pairs, READINGS, query.truncation)


def as_choice(premise: str, hypothesis: str) -> Choice:
    return unimc.pair_as_choice((premise, hypothesis), READINGS)


def decode(
    model: TextModel, query: NliQuery, encodings: Sequence[Encoding], outputs: Sequence[Output]
) -> list[NliResult]:
    return [_result(model, encoding, output) for encoding, output in zip(encodings, outputs, strict=True)]


def _result(model: TextModel, encoding: Encoding, output: Output) -> NliResult:
    scores = rank(_classes(model), unimc.class_probabilities(model, output))
    return NliResult(scores[0].label, scores[0].score, scores, encoding.num_tokens, encoding.truncated)


def _classes(model: TextModel) -> tuple[str, ...]:
    """The labels in the order of the model's classes: by the label names of its head, else in upstream's order."""
    named = tuple(_SAME_LABEL.get(label.lower(), "") for label in model.labels)
    return named if set(named) == set(LABELS) else LABELS


def predict(query: NliQuery, result: NliResult) -> Prediction:
    return Prediction(result.label, result.score)


NLI: Task[NliQuery, NliResult] = Task(
    "nli",
    can,
    encode,
    decode,
    needs="a masked LM (UniMC), or a model fine-tuned for NLI",
    hint=lambda model: unimc.label_hint(model, f"its classes are {', '.join(LABELS)}", NAMES),
    predict=predict,
    own_labels=lambda model: LABELS,
)
