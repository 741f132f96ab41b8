"""A job is an encoding that waits; a ticket is all jobs of one request, settled together.

Knows no event loop and no queue: whoever made the ticket is told once that it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from service.domain import Encoding, Output
from service.errors import ServiceError
from service.metrics import DropReason


@dataclass(frozen=True, slots=True)
class Settled:
    """A request's outputs in the order of its encodings, and where its time went.

    `compute_s` is the time during which at least one of its rows was being computed, `queue_s` the rest of the wait.
    """

    outputs: list[Output]
    queue_s: float
    compute_s: float


@dataclass(slots=True, eq=False)
class Ticket:
    """One request's jobs. Closed, with the reason, when all rows are answered, one has failed, or nobody waits."""

    encodings: Sequence[Encoding]
    arrived: float
    on_done: Callable[[Settled | ServiceError], None]
    deadline: float | None = None
    priority: int = 0
    closed: DropReason | Literal["answered"] | None = None
    _outputs: list[Output | None] = field(init=False)
    _num_missing: int = field(init=False)
    _compute_s: float = field(init=False, default=0.0)
    _counted_until: float = field(init=False)

    def __post_init__(self) -> None:
        self._outputs = [None] * len(self.encodings)
        self._num_missing = len(self.encodings)
        self._counted_until = self.arrived

    @property
    def is_closed(self) -> bool:
        return self.closed is not None

    def jobs(self) -> list[Job]:
        return [Job(self, row) for row in range(len(self.encodings))]

    def settle(self, row: int, output: Output, compute_s: float, now: float) -> None:
        """Takes one row's output, of a batch that was computed in [now - compute_s, now]."""
        if self.is_closed:
            return
        self._outputs[row] = output
        self._num_missing -= 1
        # Rows may be spread over batches that overlap in time: no second is counted twice.
        self._compute_s += min(compute_s, now - self._counted_until)
        self._counted_until = now
        if self._num_missing == 0:
            self.closed = "answered"
            outputs = [output for output in self._outputs if output is not None]
            self.on_done(Settled(outputs, now - self.arrived - self._compute_s, self._compute_s))

    def fail(self, error: ServiceError) -> None:
        if not self.is_closed:
            self.closed = "abandoned"
            self.on_done(error)

    def close(self, reason: DropReason) -> None:
        """Nobody waits any more: what comes later is thrown away."""
        self.closed = self.closed or reason


@dataclass(slots=True, eq=False)
class Job:
    """One row of a ticket. `number` is its place in the order of arrival, given by the queue."""

    ticket: Ticket
    row: int
    number: int = -1
    num_losses: int = 0

    @property
    def encoding(self) -> Encoding:
        return self.ticket.encodings[self.row]

    @property
    def num_tokens(self) -> int:
        return self.encoding.num_tokens

    def is_expired(self, now: float) -> bool:
        deadline = self.ticket.deadline
        return deadline is not None and deadline <= now
