"""Requests and the rows they wait for, with single flight: rows that are equal are computed once.

A `Job` is an encoding that is to be computed. A `PendingRequest` waits for one job per row. Several requests may wait
for the same job; it is computed as long as one of them does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from service.batching.fair_share import NOT_QUEUED, QueuePosition
from service.domain import DEFAULT_OPTIONS, Encoding, Output, RequestOptions, RowIdentity, row_identity
from service.errors import DeadlineExceeded, ServiceError
from service.metric_labels import DropReason
from service.tracing.trace import NO_TRACE, Trace

CloseReason = DropReason | Literal["answered"]


@dataclass(frozen=True, slots=True)
class RequestResult:
    """The outputs of a request in the order of its encodings, and where its time went.

    `compute_s` is the time during which at least one of its rows was being computed, `queue_s` the rest of the wait.
    """

    outputs: list[Output]
    queue_s: float
    compute_s: float


@dataclass(slots=True, eq=False)
class PendingRequest:
    """The rows of one request, the future of its result, and the timer of its deadline.

    It is closed, with a reason, when all rows are answered, one has failed, the deadline has passed, or the caller has
    gone. Without a `future` (in a simulation) the result is dropped.
    """

    encodings: Sequence[Encoding]
    arrived: float
    options: RequestOptions = DEFAULT_OPTIONS
    future: asyncio.Future[RequestResult] | None = None
    trace: Trace = NO_TRACE
    closed: CloseReason | None = None
    _outputs: list[Output | None] = field(init=False)
    _num_missing: int = field(init=False)
    _compute_s: float = field(init=False, default=0.0)
    _counted_until: float = field(init=False)
    _timer: asyncio.TimerHandle | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._outputs = [None] * len(self.encodings)
        self._num_missing = len(self.encodings)
        self._counted_until = self.arrived
        if self.future is not None and self.options.deadline is not None:
            # asyncio.timeout would do the same at several times the cost.
            self._timer = self.future.get_loop().call_later(self.options.deadline - self.arrived, self._expire)

    def is_waiting(self, now: float) -> bool:
        return self.closed is None and (self.options.deadline is None or self.options.deadline > now)

    def settle(self, row: int, output: Output, compute_s: float, now: float) -> None:
        """Takes the output of one row, from a batch that was computed in [now - compute_s, now]."""
        if self.closed is None:
            self._outputs[row] = output
            self._count(1, compute_s, now)

    def settle_cached(self, outputs: Mapping[int, Output], now: float) -> None:
        """Takes outputs that were there, by row."""
        if self.closed is None and outputs:
            for row, output in outputs.items():
                self._outputs[row] = output
            self._count(len(outputs), 0.0, now)

    def _count(self, num_rows: int, compute_s: float, now: float) -> None:
        self._num_missing -= num_rows
        # Batches of one request may overlap in time: no second is counted twice.
        self._compute_s += min(compute_s, now - self._counted_until)
        self._counted_until = now
        if self._num_missing == 0:
            self.close("answered")
            if self.future is not None and not self.future.done():
                outputs = [output for output in self._outputs if output is not None]
                queue_s = now - self.arrived - self._compute_s
                self.future.set_result(RequestResult(outputs, queue_s, self._compute_s))

    def fail(self, error: ServiceError, reason: DropReason = "abandoned") -> None:
        if self.closed is not None:
            return
        self.close(reason)
        if self.future is not None and not self.future.done():
            self.future.set_exception(error)

    def close(self, reason: CloseReason) -> None:
        """Outputs that come later are dropped. The first reason stays."""
        self.closed = self.closed or reason
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self.fail(deadline_exceeded(), "expired")


def deadline_exceeded() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the answer was there")


@dataclass(slots=True, eq=False)
class Job:
    """One encoding and the rows of requests that wait for it.

    `number` (by arrival), `position` and `is_given_back` belong to the queue; `num_losses` counts the replicas that
    were lost while they computed it. `num_tokens` is the cost of the encoding.
    """

    encoding: Encoding
    arrived: float
    waiters: list[tuple[PendingRequest, int]] = field(default_factory=list)
    number: int = -1
    position: QueuePosition = NOT_QUEUED
    is_given_back: bool = False
    num_losses: int = 0
    num_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_tokens = self.encoding.cost

    @property
    def is_new(self) -> bool:
        """Whether it was never queued."""
        return self.number < 0

    @property
    def is_deserted(self) -> bool:
        """Whether every request that waited for it is closed."""
        return all(pending.closed is not None for pending, _ in self.waiters)

    def is_wanted(self, now: float) -> bool:
        """Whether a request still waits for it."""
        return any(pending.is_waiting(now) for pending, _ in self.waiters)

    def settle(self, output: Output, compute_s: float, now: float) -> None:
        for pending, row in self.waiters:
            pending.settle(row, output, compute_s, now)

    def fail(self, error: Callable[[int], ServiceError]) -> None:
        """`error` makes an error for a row number. Each request gets its own: a raised exception holds a traceback."""
        for pending, row in self.waiters:
            pending.fail(error(row))

    def drop_reason(self) -> DropReason:
        """Why no request waits any more: the first reason that is not just a deadline that has passed unnoticed."""
        reasons = (pending.closed for pending, _ in self.waiters)
        return next((reason for reason in reasons if reason is not None and reason != "answered"), "expired")


class InFlightRows:
    """The jobs that wait or compute, at most one per row identity.

    A job is removed when it has its output, has failed, or is no longer wanted.
    """

    def __init__(self) -> None:
        self._jobs: dict[RowIdentity, Job] = {}
        self._identities: dict[Job, RowIdentity] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, pending: PendingRequest, rows: Iterable[int]) -> list[Job]:
        """The jobs of these rows of the request, in order and each once: new ones, and ones that are in flight."""
        jobs: dict[int, Job] = {}
        for row in rows:
            encoding = pending.encodings[row]
            identity = row_identity(encoding)
            job = self._jobs.get(identity)
            if job is None:
                job = self._jobs[identity] = Job(encoding, pending.arrived)
                self._identities[job] = identity
            elif encoding.kept_as:
                job.encoding = encoding  # the same row, and its output is kept
            job.waiters.append((pending, row))
            jobs[id(job)] = job
        return list(jobs.values())

    def remove(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            if identity := self._identities.pop(job, None):
                del self._jobs[identity]

    def fail(self, jobs: Iterable[Job], error: Callable[[int], ServiceError]) -> None:
        """Removes the jobs and fails the requests that wait for them; see `Job.fail`."""
        jobs = list(jobs)
        self.remove(jobs)
        for job in jobs:
            job.fail(error)
