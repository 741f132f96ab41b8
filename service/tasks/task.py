"""A task: a pure pair of encode and decode around one encoder forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from service.domain import Encoding, Output
from service.tasks.text_model import TextModel

Q = TypeVar("Q")
R = TypeVar("R")
Truncation = Literal["right", "left", "error"]


@dataclass(frozen=True, slots=True)
class Task(Generic[Q, R]):
    """One encoding per input on the way down, one result per input, in input order, on the way up.

    `encode` raises InvalidRequest with the path of the field. `can` says whether a model is able to answer a query;
    `needs` says to people what it takes.
    """

    name: str
    can: Callable[[TextModel, Q], bool]
    encode: Callable[[TextModel, Q], list[Encoding]]
    decode: Callable[[TextModel, Q, Sequence[Encoding], Sequence[Output]], list[R]]
    needs: str = "another model"
