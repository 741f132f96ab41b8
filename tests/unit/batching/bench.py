"""Test bench for the queue: push requests, take batches, record dropped jobs."""

from __future__ import annotations

from collections.abc import Sequence

from service.batching.jobs import Job, PendingRequest
from service.batching.latency_model import LatencyModels
from service.batching.queue import Queue
from service.domain import RequestOptions
from service.metric_labels import DropReason
from tests.fakes import make_metrics, rows

AGE = 10.0


class Budgets(LatencyModels):
    """One token budget for every model, and no predictions."""

    def __init__(self) -> None:
        super().__init__(metrics=make_metrics())
        self.tokens = 10

    def budget(self, model: str) -> int:
        return self.tokens


class Bench:
    """A queue and its dropped jobs. A job's number is its position in the order of pushes."""

    def __init__(self) -> None:
        self.dropped: list[tuple[DropReason, list[int]]] = []
        self.models = Budgets()
        self.queue = Queue(latency_models=self.models, max_age_s=AGE, on_dropped=self._on_dropped)

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
        pending = PendingRequest(rows(*lengths, model=model), now, RequestOptions(deadline, priority, account, weight))
        self.queue.push(jobs_of(pending), pending.options)
        return pending

    def take(self, budget: int = 10, now: float = 0.0) -> list[int]:
        self.models.tokens = budget
        return numbers_of(self.take_jobs(now))

    def take_jobs(self, now: float = 0.0) -> list[Job]:
        batch = self.queue.take(now)
        return [] if batch is None else list(batch.jobs)

    def take_all(self, budget: int = 10, now: float = 0.0) -> list[list[int]]:
        return list(iter(lambda: self.take(budget, now), []))

    def _on_dropped(self, reason: DropReason, jobs: Sequence[Job]) -> None:
        self.dropped.append((reason, numbers_of(jobs)))


def jobs_of(pending: PendingRequest) -> list[Job]:
    return [Job(encoding, pending.arrived, [(pending, row)]) for row, encoding in enumerate(pending.encodings)]


def numbers_of(jobs: Sequence[Job]) -> list[int]:
    return [job.number for job in jobs]
