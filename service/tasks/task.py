"""A task: a pure pair of encode and decode around one encoder forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

from service.domain import Encoding, Output
from service.tasks.text_model import TextModel

Q = TypeVar("Q")
R = TypeVar("R")
Truncation = Literal["right", "left", "error"]


class Prediction(NamedTuple):
    """What a result decides, for the metrics of drift.

    `label` is one of the task's or of the model's head, and None where the words are the caller's: they never become
    labels of a metric. `score` is the confidence of the model, 0 to 1.
    """

    label: str | None
    score: float


def no_labels(model: TextModel) -> tuple[str, ...]:
    """The default: whatever such a task decides, it is in the caller's words."""
    return ()


@dataclass(frozen=True, slots=True)
class Task(Generic[Q, R]):
    """One encoding per input on the way down, one result per input, in input order, on the way up.

    `encode` raises InvalidRequest with the path of the field. `can` says whether a model is able to answer a query;
    `needs` says to people what it takes. `predict` is there where a result is a decision, with a label among
    `own_labels` or with none.
    """

    name: str
    can: Callable[[TextModel, Q], bool]
    encode: Callable[[TextModel, Q], list[Encoding]]
    decode: Callable[[TextModel, Q, Sequence[Encoding], Sequence[Output]], list[R]]
    needs: str = "another model"
    predict: Callable[[Q, R], Prediction] | None = None
    own_labels: Callable[[TextModel], tuple[str, ...]] = no_labels
