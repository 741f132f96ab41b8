"""A queue to push requests into and take batches from, and what became of its jobs."""

from __future__ import annotations

from collections.abc import Sequence

from service.batching.jobs import Job, Settled, Ticket
from service.batching.queue import Queue
from service.domain import Terms
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
    ) -> Ticket:
        ticket = Ticket(rows(*lengths, model=model), now, ignore, Terms(deadline, priority, account, weight))
        self.queue.push(jobs_of(ticket), ticket.terms)
        return ticket

    def take(self, budget: int = 10, now: float = 0.0) -> list[int]:
        self.budget = budget
        return numbers_of(self.queue.take(now))

    def take_all(self, budget: int = 10, now: float = 0.0) -> list[list[int]]:
        return list(iter(lambda: self.take(budget, now), []))

    def _on_dropped(self, reason: DropReason, jobs: Sequence[Job]) -> None:
        self.dropped.append((reason, numbers_of(jobs)))


def jobs_of(ticket: Ticket) -> list[Job]:
    return [Job(encoding, ticket.arrived, [(ticket, row)]) for row, encoding in enumerate(ticket.encodings)]


def ignore(result: Settled | ServiceError) -> None:
    """Nobody waits for these tickets."""


def numbers_of(jobs: Sequence[Job]) -> list[int]:
    return [job.number for job in jobs]
