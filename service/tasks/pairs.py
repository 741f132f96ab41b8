"""Questions on two texts: a pair for a fine-tuned head, or a choice among readings of the second one (UniMC)."""

from __future__ import annotations

from collections.abc import Sequence

from service.domain import Encoding, FloatArray, Labels, Output
from service.tasks.choice import Choice, encode_choices, probabilities
from service.tasks.rows import encode_rows
from service.tasks.scores import softmax
from service.tasks.task import Truncation
from service.tasks.text_model import TextModel


def can_compare(model: TextModel, purpose: str, readings: Sequence[str]) -> bool:
    """Whether it can choose, or has a head made for this purpose with one class for each reading."""
    return model.can_choose or (purpose in model.tasks and len(model.labels) == len(readings))


def encode_pairs(
    model: TextModel, pairs: Sequence[tuple[str, str]], readings: Sequence[str], truncation: Truncation
) -> list[Encoding]:
    if model.kind == "sequence-classification":
        return encode_rows(model, pairs, Labels(), truncation)
    choices = [pair_as_choice(pair, readings) for pair in pairs]
    return encode_choices(model, choices, truncation, options_field="inputs[{index}][1]")


def pair_as_choice(pair: tuple[str, str], readings: Sequence[str]) -> Choice:
    """The second text, put in each way of `readings` ({} is the text), as options over the first."""
    first, second = pair
    return Choice(tuple(reading.format(second) for reading in readings), (first,))


def class_probabilities(model: TextModel, output: Output) -> FloatArray:
    """One for each reading, shape [num_readings]; for a fine-tuned head one for each of its classes."""
    return softmax(output.scores[0]) if model.kind == "sequence-classification" else probabilities(output)
