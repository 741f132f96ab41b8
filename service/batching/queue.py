"""Jobs that wait, and which of them make the next batch: order, token budget, deadline and cancellation.

Pure: time is passed in as `now` (seconds), nothing is awaited, and what was dropped is told to a callable.

Order: jobs given back after a loss, then jobs older than the age cap, then by priority; by arrival within each. The
first job always goes in and decides the model of the batch. Later jobs of that model fill the rest of the budget: a
long one that does not fit is passed over in favour of shorter ones, unless it is older than the age cap; then the
batch is closed, so that it leads a batch soon.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import merge
from itertools import count
from typing import Literal

from service.batching.job import Job
from service.metrics import DROP_REASONS, DropReason

MAX_PASSED_OVER = 256
"""How many jobs that do not fit are looked at per batch: taking a batch stays cheap however long the queue is."""

Lane = OrderedDict[int, Job]
Dropped = Callable[[DropReason, Sequence[Job]], None]


class Queue:
    """One queue for all models."""

    def __init__(self, *, max_age_s: float, dropped: Dropped) -> None:
        self._max_age_s = max_age_s
        self._dropped = dropped
        self._numbers = count()
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._returned: Lane = OrderedDict()
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._returned) + sum(map(len, self._lanes.values()))

    def oldest_arrival(self) -> float | None:
        firsts = [next(iter(lane.values())).ticket.arrived for lane in self._all_lanes() if lane]
        return min(firsts, default=None)

    def push(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            job.number = next(self._numbers)
            self._lanes.setdefault(_key(job), OrderedDict())[job.number] = job
            self.num_tokens += job.num_tokens

    def give_back(self, jobs: Iterable[Job]) -> None:
        """Lost jobs go to the head of the queue, in order of arrival among all that were given back."""
        jobs = list(jobs)
        for job in jobs:
            job.num_losses += 1
        together = [*self._returned.values(), *jobs]
        self._returned = OrderedDict((job.number, job) for job in sorted(together, key=lambda job: job.number))
        self.num_tokens += sum(job.num_tokens for job in jobs)

    def remove(self, jobs: Iterable[Job], reason: DropReason) -> None:
        """Drops those of the jobs that still wait."""
        self._drop([job for job in jobs if self._waits(job)], reason)

    def drain(self) -> list[Job]:
        """Every job that waits, in order of arrival; the queue is empty afterwards."""
        jobs = [job for lane in self._all_lanes() for job in lane.values()]
        for job in jobs:
            self._unlink(job)
        return sorted(jobs, key=lambda job: job.number)

    def take(self, now: float, max_tokens: int) -> list[Job]:
        """The next batch, in order; empty when nobody waits. Dead jobs on the way are dropped."""
        dead: dict[int, Job] = {}
        head = next(self._living(self._all_lanes(), now, dead), None)
        batch = [] if head is None else self._fill(head, now, max_tokens, dead)
        for job in batch:
            self._unlink(job)
        # Grouped before any is dropped: who is told of a drop may close its ticket, for that reason.
        groups = {reason: [job for job in dead.values() if _reason(job) == reason] for reason in DROP_REASONS}
        for reason, jobs in groups.items():
            self._drop(jobs, reason)
        return batch

    def _fill(self, head: Job, now: float, max_tokens: int, dead: dict[int, Job]) -> list[Job]:
        model = head.encoding.model
        lanes = [self._returned, *(lane for (of, _), lane in self._lanes.items() if of == model)]
        batch, room, num_passed_over = [head], max_tokens - head.num_tokens, 0
        for job in self._living(lanes, now, dead):
            if room <= 0 or num_passed_over >= MAX_PASSED_OVER:
                break
            if job is head or job.encoding.model != model:
                continue
            if job.num_tokens <= room:
                batch.append(job)
                room -= job.num_tokens
            elif self._is_due(job, now):
                break
            else:
                num_passed_over += 1
        return batch

    def _living(self, lanes: Iterable[Lane], now: float, dead: dict[int, Job]) -> Iterator[Job]:
        """The lanes' jobs in order; those that need no answer any more are put into `dead` instead."""
        for job in merge(*(lane.values() for lane in lanes), key=lambda job: self._rank(job, now)):
            if job.ticket.is_closed or job.is_expired(now):
                dead[job.number] = job
            else:
                yield job

    def _rank(self, job: Job, now: float) -> tuple[int, int, int]:
        if job.num_losses:
            return (0, 0, job.number)
        if self._is_due(job, now):
            return (1, 0, job.number)
        return (2, -job.ticket.priority, job.number)

    def _is_due(self, job: Job, now: float) -> bool:
        return job.num_losses > 0 or now - job.ticket.arrived >= self._max_age_s

    def _all_lanes(self) -> list[Lane]:
        return [self._returned, *self._lanes.values()]

    def _lane_of(self, job: Job) -> Lane | None:
        return self._returned if job.num_losses else self._lanes.get(_key(job))

    def _waits(self, job: Job) -> bool:
        lane = self._lane_of(job)
        return lane is not None and job.number in lane

    def _drop(self, jobs: list[Job], reason: DropReason) -> None:
        for job in jobs:
            self._unlink(job)
        if jobs:
            self._dropped(reason, jobs)

    def _unlink(self, job: Job) -> None:
        lane = self._lane_of(job)
        assert lane is not None, "a job that does not wait cannot be taken"
        del lane[job.number]
        self.num_tokens -= job.num_tokens
        if not lane and not job.num_losses:
            del self._lanes[_key(job)]


def _reason(job: Job) -> DropReason | Literal["answered"]:
    return job.ticket.closed or "expired"


def _key(job: Job) -> tuple[str, int]:
    return (job.encoding.model, job.ticket.priority)
