"""The jobs of one model that wait, in the order of the queue: lost ones, overdue ones, then priorities by tag.

Knows no budget and no ticket. A job that leaves costs nothing but the stale entry in its lane, which is skipped. For
the first one every account that waits at the highest priority is looked at.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain

from service.batching.job import Job
from service.batching.lane import Lane
from service.batching.share import Share

Rank = tuple[int, float, float, float, int]
"""Class, then what counts within it, then arrival."""

LOST, OVERDUE, IN_ORDER = 0, 1, 2

NEVER = float("-inf")


class Line:
    """Every job that waits is here once, and once more in the lane of its share unless it was lost."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self._lost: dict[int, Job] = {}
        self._by_arrival: OrderedDict[int, Job] = OrderedDict()
        self._lanes: dict[int, dict[Share, Lane]] = {}  # the highest priority first

    def __len__(self) -> int:
        return len(self._lost) + len(self._by_arrival)

    def __iter__(self) -> Iterator[Job]:
        """Lost ones first, then by arrival."""
        return chain(self._lost.values(), self._by_arrival.values())

    def __contains__(self, job: Job) -> bool:
        return job.number in (self._lost if job.is_back else self._by_arrival)

    def add(self, job: Job) -> None:
        self.num_tokens += job.num_tokens
        if job.is_back:
            self._lost[job.number] = job
            self._lost = dict(sorted(self._lost.items()))
        else:
            self._by_arrival[job.number] = job
            self.place(job)

    def place(self, job: Job) -> None:
        """Puts a job that is here where its place is; where it was before it is stale."""
        priority, share = job.place.priority, job.place.share
        if priority not in self._lanes:
            self._lanes[priority] = {}
            self._lanes = dict(sorted(self._lanes.items(), reverse=True))
        lanes = self._lanes[priority]
        if share not in lanes:
            lanes[share] = Lane(self._by_arrival)
        lanes[share].push(job)

    def remove(self, job: Job) -> None:
        self.num_tokens -= job.num_tokens
        del (self._lost if job.is_back else self._by_arrival)[job.number]

    def first(self, overdue_since: float) -> tuple[Rank, Job] | None:
        """The first job; overdue is what came until then."""
        if self._lost:
            number, job = next(iter(self._lost.items()))
            return (LOST, 0, 0, 0, number), job
        if overdue_since > NEVER and self._by_arrival:
            number, job = next(iter(self._by_arrival.items()))
            if job.arrived <= overdue_since:
                return (OVERDUE, job.arrived, 0, 0, number), job
        for priority, lanes in self._lanes.items():
            if ranked := _ranked(priority, lanes):
                return min(ranked)
        return None

    def pass_over(self, job: Job) -> None:
        """Takes what was first in order out of its lane, so that the next one is first, as if its account had been
        given it."""
        share = job.place.share
        share.passed_over += job.num_tokens
        self._lanes[job.place.priority][share].pop()

    def put_back(self, job: Job) -> None:
        """Where it was before it was passed over."""
        job.place.share.passed_over = 0
        self.place(job)


def _ranked(priority: int, lanes: dict[Share, Lane]) -> list[tuple[Rank, Job]]:
    """The first job of every account; lanes that are empty are cleared away."""
    ranked: list[tuple[Rank, Job]] = []
    for share, lane in tuple(lanes.items()):
        if job := lane.first():
            ranked.append(((IN_ORDER, -priority, share.turn, job.place.tag, job.number), job))
        else:
            del lanes[share]
    return ranked
