"""Task interface: pure functions that encode a query before one encoder forward and decode its outputs after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

from service.domain import Encoding, Labels, Output, TokenScores
from service.metric_labels import Decision, UsedMethod
from service.tasks.text_model import TextModel

Q = TypeVar("Q")
R = TypeVar("R")
NUMBER_BYTES = 22
"""A number of a result in JSON."""
Truncation = Literal["right", "left", "head_tail", "error"]
"""Where a text that is too long is cut: at its end, at its start, in its middle, or not at all."""
Method = Literal["auto", "choice", "embedding"]
"""What a request asks for: a choice model (UniMC), an embedding model, or what is there, both together if possible."""


def used_method(encodings: Sequence[Encoding]) -> UsedMethod:
    """The method by the rows of a request: those of a choice come first, those of an embedding model last."""
    match encodings[0].readout:
        case Labels():
            return "classifier"
        case TokenScores():
            return "choice" if encodings[-1].model == encodings[0].model else "blend"
        case _:
            return "embedding"


class Needs(NamedTuple):
    """Which model a query needs, in words, and the field of the request that says so."""

    model: str
    field: str = "model"


class Prediction(NamedTuple):
    """The decision in a result, for the metrics that show drift.

    `label` belongs to the task or to the model's head. It is None for labels from the request, which never become label
    values of a metric. `score` is the model's confidence, 0 to 1, and `decision` what was made of it, if anything was.
    """

    label: str | None
    score: float
    decision: Decision | None = None


def no_labels(model: TextModel) -> tuple[str, ...]:
    """The default: the task has only labels from the request, or none."""
    return ()


def always(model: TextModel) -> bool:
    """The default: results are decisions with every model."""
    return True


def never(model: TextModel) -> bool:
    """The default: no model answers only where no other one can."""
    return False


def no_hint(model: TextModel) -> str | None:
    """The default: no setting makes a model able to do the task."""
    return None


def nothing_missing(query: object) -> None:
    """The default: no optional field decides which models can answer a query."""


def unbound(model: TextModel, query: Q) -> Q:
    """The default: nothing is kept for a query."""
    return query


def one_stage(model: TextModel, query: object) -> bool:
    """The default: all rows of a query are known at once."""
    return False


def small_reply(model: TextModel, query: object) -> int:
    """The default: a few hundred bytes per input, which the limit on inputs bounds."""
    return 0


@dataclass(frozen=True, slots=True)
class Task(Generic[Q, R]):
    """`encode` returns the rows, `decode` one result per input, both in the order of the inputs.

    There is one row per input. A task with a `num_inputs` may return several: one of each input, then again one of each
    input, and so on, perhaps of another model, and at last rows whose outputs are kept; or several in succession, all
    but the first with `continues`. `method` says what answers.

    `bind` completes a query with what the model keeps for it. For a query with a second stage, `follow` returns its
    rows, which need the outputs of the first one, and may be none; `decode` then gets those rows and outputs before
    those of the first stage.

    `encode` raises InvalidRequest with the path of the field. `can` is whether a model can answer a query. A model that
    `is_second_choice` answers only where it is named, was fine-tuned for the task, or no other one can. In error
    messages `needs` describes such a model, `with_missing` returns an optional field that the query lacks and the query
    with that field, which other models can do, and `hint` says what to set so that another model can. `reply_bytes`
    estimates the JSON of all results. `predict` is set if a result is a decision, of every model that `decides`; the
    label of the prediction is one of `own_labels`, or None.
    """

    name: str
    can: Callable[[TextModel, Q], bool]
    encode: Callable[[TextModel, Q], list[Encoding]]
    decode: Callable[[TextModel, Q, Sequence[Encoding], Sequence[Output]], list[R]]
    bind: Callable[[TextModel, Q], Q] = unbound
    follow: Callable[[TextModel, Q, Sequence[Encoding], Sequence[Output]], list[Encoding]] | None = None
    has_second_stage: Callable[[TextModel, Q], bool] = one_stage
    needs: str | Callable[[Q], Needs] = "another model"
    with_missing: Callable[[Q], tuple[str, Q] | None] = nothing_missing
    is_second_choice: Callable[[TextModel], bool] = never
    num_inputs: Callable[[Q], int] | None = None
    method: Callable[[Sequence[Encoding]], UsedMethod] | None = None
    hint: Callable[[TextModel], str | None] = no_hint
    reply_bytes: Callable[[TextModel, Q], int] = small_reply
    predict: Callable[[Q, R], Prediction] | None = None
    decides: Callable[[TextModel], bool] = always
    own_labels: Callable[[TextModel], tuple[str, ...]] = no_labels
