"""Replicas in simulated time: how long requests take that come at random, at this rate, on so many devices.

Batches are made as the service makes them: a replica with room takes what waits, up to a budget; one batch waits at a
replica while one computes. First come, first served: of requests that are alike the service's own order is no other.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import cycle

from service.planning.speed import Speed

NUM_IN_FLIGHT = 2
"""Batches of a replica: one computes, one waits in its pipe."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Poisson arrivals of requests with so many rows each; row lengths are taken from `lengths` in turn."""

    requests_per_s: float
    rows: int
    lengths: Sequence[int]

    @property
    def row_tokens(self) -> float:
        return sum(self.lengths) / len(self.lengths)

    @property
    def tokens_per_s(self) -> float:
        return self.requests_per_s * self.rows * self.row_tokens


@dataclass(slots=True, eq=False)
class _Request:
    at: float
    missing: int


@dataclass(slots=True, eq=False)
class _Replica:
    free_at: float = 0.0
    in_flight: int = 0


class _Pool:
    """Replicas by the number of batches that they have."""

    def __init__(self, num_replicas: int) -> None:
        self._having = [{_Replica(): None for _ in range(num_replicas)}, *({} for _ in range(NUM_IN_FLIGHT))]

    def with_room(self) -> _Replica | None:
        """The one with the fewest batches."""
        return next((next(iter(some)) for some in self._having[:-1] if some), None)

    def give(self, replica: _Replica, num_batches: int) -> None:
        """One more, or one fewer."""
        del self._having[replica.in_flight][replica]
        replica.in_flight += num_batches
        self._having[replica.in_flight][replica] = None


@dataclass(slots=True)
class _Waiting:
    """Rows in order of arrival."""

    budget: int
    rows: deque[tuple[_Request, int]] = field(default_factory=deque)

    def take(self) -> list[tuple[_Request, int]]:
        batch: list[tuple[_Request, int]] = []
        room = self.budget
        while self.rows and (not batch or self.rows[0][1] <= room):
            batch.append(self.rows.popleft())
            room -= batch[-1][1]
        return batch


def latencies(speed: Speed, traffic: Traffic, replicas: int, num_requests: int, seed: int = 1) -> list[float]:
    """Seconds from arrival to answer of each request, in order of their ends, the first tenth left out."""
    coming = _arrivals(traffic, num_requests, random.Random(seed))
    waiting, pool = _Waiting(speed.budget), _Pool(replicas)
    ends: list[tuple[float, int, _Replica, list[tuple[_Request, int]]]] = []
    found: list[float] = []
    number, arrival = 0, next(coming, None)
    while arrival or ends:
        if arrival and (not ends or arrival[0].at <= ends[0][0]):
            request, rows = arrival
            now = request.at
            waiting.rows.extend((request, tokens) for tokens in rows)
            arrival = next(coming, None)
        else:
            now, _, replica, batch = heappop(ends)
            pool.give(replica, -1)
            found += _settle(batch, now)
        while waiting.rows and (roomy := pool.with_room()):
            batch = waiting.take()
            roomy.free_at = max(now, roomy.free_at) + speed.cost.of(sum(tokens for _, tokens in batch), len(batch))
            pool.give(roomy, +1)
            number += 1
            heappush(ends, (roomy.free_at, number, roomy, batch))
    return found[len(found) // 10 :]


def _arrivals(traffic: Traffic, num_requests: int, rng: random.Random) -> Iterator[tuple[_Request, list[int]]]:
    at, lengths = 0.0, cycle(traffic.lengths)
    for _ in range(num_requests):
        at += rng.expovariate(traffic.requests_per_s)
        yield _Request(at, traffic.rows), [next(lengths) for _ in range(traffic.rows)]


def _settle(batch: list[tuple[_Request, int]], now: float) -> Iterator[float]:
    for request, _ in batch:
        request.missing -= 1
        if not request.missing:
            yield now - request.at
