"""A queue to push requests into and take batches from, and what became of its jobs."""

from __future__ import annotations

from collections.abc import Sequence

from service.batching.jobs import Job, PendingRequest, RequestResult
from service.batching.queue import Queue
from service.domain import RequestOptions
from service.errors import ServiceError
from service.metric_labels import DropReason
from tests.fakes import rows

AGE = 10.0


class Bench:
    """A queue, and what happened to its jobs; a job is known by the order it was pushed in."""

    def __init__(self) -> None:
        self.dropped: list[tuple[DropReason, list[int]]] = []
        self.budget = 10
        self.queue = Queue(max_age_s=AGE, budget=lambda model: self.budget, dropped=self._on_dropped)

    def push(
        self,
        *lengths: int,
        now: float = 0.0,
        model: str = "m",
        priority: int = 0,
        deadline: float | None = None,
        account: str = "",
        weight: float = 1.0,
    ) -> PendingRequest:
        pending = PendingRequest(
            rows(*lengths, model=model), now, ignore, RequestOptions(deadline, priority, account, weight)
        )
        self.queue.push(jobs_of(pending), pending.options)
        return pending

    def take(self, budget: int = 10, now: float = 0.0) -> list[int]:
        self.budget = budget
        return numbers_of(self.queue.take(now))

    def take_all(self, budget: int = 10, now: float = 0.0) -> list[list[int]]:
        return list(iter(lambda: self.take(budget, now), []))

    def _on_dropped(self, reason: DropReason, jobs: Sequence[Job]) -> None:
        self.dropped.append((reason, numbers_of(jobs)))


def jobs_of(pending: PendingRequest) -> list[Job]:
    return [Job(encoding, pending.arrived, [(pending, row)]) for row, encoding in enumerate(pending.encodings)]


def ignore(result: RequestResult | ServiceError) -> None:
    """Nobody waits for these tickets."""


def numbers_of(jobs: Sequence[Job]) -> list[int]:
    return [job.number for job in jobs]
