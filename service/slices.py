"""Long computations are done in slices: between two of them a computation can be paused or cancelled.

The caller sets what happens there with `run_in_slices`; by default nothing does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import TypeVar

T = TypeVar("T")


def _go_on() -> None:
    """No-op."""


_between: ContextVar[Callable[[], None]] = ContextVar("between_slices", default=_go_on)


def between_slices() -> None:
    """Call this between two parts of a computation that may take more than some milliseconds.

    Raises what the caller of the computation raises there to cancel it.
    """
    _between.get()()


def run_in_slices(call: Callable[[], T], between: Callable[[], None]) -> T:
    """The result of `call`, which calls `between` between its slices."""
    context = copy_context()
    context.run(_between.set, between)
    return context.run(call)
