"""Jobs on one share in the order of their tags, any of which may leave at any time: a heap with stale entries.

An entry is stale once its job waits no more, or waits in another place. To push and to pop cost the logarithm of the
number of jobs; stale entries are skipped, and cleared away when they are the most.
"""

from __future__ import annotations

from collections.abc import Container
from heapq import heapify, heappop, heappush

from service.batching.job import Job
from service.batching.share import Place

SLACK = 64
"""Stale entries that are never worth a clearing."""


class Lane:
    """`waiting` holds the numbers of the jobs that wait, in any lane."""

    def __init__(self, waiting: Container[int]) -> None:
        self._waiting = waiting
        self._heap: list[tuple[float, int, Job, Place]] = []
        self._size_when_cleared = 0

    def __len__(self) -> int:
        """Stale entries too."""
        return len(self._heap)

    def push(self, job: Job) -> None:
        """Puts a job where its place is."""
        if len(self._heap) > 2 * self._size_when_cleared + SLACK:
            self._clear()
        heappush(self._heap, (job.place.tag, job.number, job, job.place))

    def first(self) -> Job | None:
        """The job with the least tag, of equals the one that arrived first; it stays."""
        while self._heap:
            _, number, job, place = self._heap[0]
            if job.place is place and number in self._waiting:
                return job
            heappop(self._heap)
        return None

    def pop(self) -> None:
        """Takes out what `first` has just shown."""
        heappop(self._heap)

    def _clear(self) -> None:
        """At most once in as many pushes as entries are kept, so a push is cheap on average."""
        self._heap = [entry for entry in self._heap if entry[2].place is entry[3] and entry[1] in self._waiting]
        heapify(self._heap)
        self._size_when_cleared = len(self._heap)
