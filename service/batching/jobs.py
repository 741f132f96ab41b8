"""A job is an encoding that is to be computed; a ticket is one request, which waits for a job per row of its own.

Knows no event loop and no queue: whoever made the ticket is told once that it is done. Several tickets may wait for one
job: the job is wanted as long as one of them does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from service.batching.fair_share import NOT_QUEUED, QueuePosition
from service.domain import DEFAULT_OPTIONS, Encoding, Output, Readout, RequestOptions
from service.errors import ServiceError
from service.metric_labels import DropReason
from service.tracing.trace import NO_TRACE, Trace

Closed = DropReason | Literal["answered"]


@dataclass(frozen=True, slots=True)
class RequestResult:
    """A request's outputs in the order of its encodings, and where its time went.

    `compute_s` is the time during which at least one of its rows was being computed, `queue_s` the rest of the wait.
    """

    outputs: list[Output]
    queue_s: float
    compute_s: float


@dataclass(slots=True, eq=False)
class PendingRequest:
    """One request's rows. Closed, with the reason, when all are answered, one has failed, or nobody waits."""

    encodings: Sequence[Encoding]
    arrived: float
    on_done: Callable[[RequestResult | ServiceError], None]
    options: RequestOptions = DEFAULT_OPTIONS
    trace: Trace = NO_TRACE
    closed: Closed | None = None
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

    def is_waiting(self, now: float) -> bool:
        return self.closed is None and (self.options.deadline is None or self.options.deadline > now)

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
            self.on_done(RequestResult(outputs, now - self.arrived - self._compute_s, self._compute_s))

    def fail(self, error: ServiceError, reason: DropReason = "abandoned") -> None:
        if not self.is_closed:
            self.closed = reason
            self.on_done(error)

    def close(self, reason: DropReason) -> Closed:
        """Nobody waits any more: what comes later is thrown away. Returns the first reason to be closed."""
        self.closed = self.closed or reason
        return self.closed


@dataclass(slots=True, eq=False)
class Job:
    """One encoding and the rows of tickets that wait for it. `number` (of its arrival), `place` and `is_back` (it was
    given back) are the queue's; `num_losses` counts the replicas that were lost with it at hand."""

    encoding: Encoding
    arrived: float
    waiters: list[tuple[PendingRequest, int]] = field(default_factory=list)
    number: int = -1
    position: QueuePosition = NOT_QUEUED
    is_back: bool = False
    num_losses: int = 0
    num_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_tokens = self.encoding.num_tokens

    @property
    def is_new(self) -> bool:
        """Whether it never was in a queue."""
        return self.number < 0

    @property
    def is_suspect(self) -> bool:
        """Whether it may be what a replica died of."""
        return self.num_losses > 0

    @property
    def is_deserted(self) -> bool:
        """Whether all who waited for it have gone."""
        return all(pending.is_closed for pending, _ in self.waiters)

    def is_wanted(self, now: float) -> bool:
        """Whether anybody's answer depends on it, and may still come."""
        return any(pending.is_waiting(now) for pending, _ in self.waiters)

    def settle(self, output: Output, compute_s: float, now: float) -> None:
        for pending, row in self.waiters:
            pending.settle(row, output, compute_s, now)

    def fail(self, error: Callable[[int], ServiceError]) -> None:
        """Each ticket gets an error of its own, made for its row: a raised exception carries its traceback."""
        for pending, row in self.waiters:
            pending.fail(error(row))

    def drop_reason(self) -> DropReason:
        """Why nobody waits any more: the first of those who did not just let their deadline pass."""
        reasons = (pending.closed for pending, _ in self.waiters)
        return next((reason for reason in reasons if reason is not None and reason != "answered"), "expired")


Identity = tuple[str, Readout, tuple[tuple[int, int], ...], bytes, bytes, bytes]


def identity(encoding: Encoding) -> Identity:
    """All that the engine sees of it."""
    arrays = encoding.ids.tobytes(), encoding.segment_ids.tobytes(), encoding.positions.tobytes()
    return (encoding.model, encoding.readout, encoding.blocks, *arrays)


class InFlightRows:
    """At most one job of each identity."""

    def __init__(self) -> None:
        self._jobs: dict[Identity, Job] = {}
        self._identities: dict[Job, Identity] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def board(self, pending: PendingRequest, rows: Iterable[int]) -> list[Job]:
        """A job for each of these rows of the ticket, in order and each once: new ones, and ones in flight already."""
        jobs: dict[int, Job] = {}
        for row in rows:
            job = self._job(pending.encodings[row], pending.arrived)
            job.waiters.append((pending, row))
            jobs[id(job)] = job
        return list(jobs.values())

    def land(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            if key := self._identities.pop(job, None):
                del self._jobs[key]

    def _job(self, encoding: Encoding, now: float) -> Job:
        key = identity(encoding)
        job = self._jobs.get(key)
        if job is None:
            job = self._jobs[key] = Job(encoding, now)
            self._identities[job] = key
        return job
