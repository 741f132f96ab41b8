"""What is to be computed right now, waiting or computing, by what it is: who asks for the same waits for the same job.

Knows no queue and no time. A job that has landed (its output is there, it failed, or nobody wanted it any more) is
forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable

from service.batching.identity import Identity, identity
from service.batching.job import Job, Ticket
from service.domain import Encoding


class Flights:
    """At most one job of each identity."""

    def __init__(self) -> None:
        self._jobs: dict[Identity, Job] = {}
        self._identities: dict[Job, Identity] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def board(self, ticket: Ticket, rows: Iterable[int]) -> list[Job]:
        """A job for each of these rows of the ticket, in order and each once: new ones, and ones in flight already."""
        jobs: dict[int, Job] = {}
        for row in rows:
            job = self._job(ticket.encodings[row], ticket.arrived)
            job.waiters.append((ticket, row))
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
