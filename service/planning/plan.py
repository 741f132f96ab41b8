"""How many replicas a wish needs: the fewest whose simulated latencies keep to it.

Knows no flags and prints nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import quantiles

from service.planning.simulation import Traffic, latencies
from service.planning.speed import Speed

NUM_REQUESTS = 20_000
"""Of a simulation: a 95th percentile of them is steady to a few hundredths."""

FRONT_S = 0.0011
"""What HTTP, tokens, queue and pipe add to the time of a request: benchmarks/results/front.json."""

FRONT_CPU_S, FRONT_CPU_ROW_S = 0.00037, 0.000047
"""Of the one process that answers HTTP, for a request and for each of its rows: the same file."""

FRONT_BUSY = 0.7
"""The share of a core up to which that process is planned to be used."""

IDLE = 0.02
"""Replicas so little used are no quicker when there are more of them."""


@dataclass(frozen=True, slots=True)
class Point:
    """What so many replicas would do. Latencies in seconds, None where more comes than they compute."""

    replicas: int
    used: float
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None

    def keeps(self, p95_s: float) -> bool:
        return self.p95 is not None and self.p95 <= p95_s


def point(speed: Speed, traffic: Traffic, replicas: int) -> Point:
    used = traffic.tokens_per_s / speed.tokens_per_s(traffic.row_tokens) / replicas
    if used >= 1:
        return Point(replicas, used)
    cuts = quantiles(latencies(speed, traffic, replicas, NUM_REQUESTS), n=100)
    return Point(replicas, used, *(cuts[share - 1] + FRONT_S for share in (50, 95, 99)))


def fewest(speed: Speed, traffic: Traffic, p95_s: float) -> Point:
    """The fewest replicas that keep to `p95_s`; where no number would, one that does not."""
    least = max(1, math.ceil(traffic.tokens_per_s / speed.tokens_per_s(traffic.row_tokens)))
    too_few = least - 1
    best = point(speed, traffic, least)
    if alone_s(speed, traffic) > p95_s:
        return best
    while not best.keeps(p95_s) and best.used > IDLE:
        too_few = best.replicas
        best = point(speed, traffic, 2 * best.replicas)
    while best.keeps(p95_s) and best.replicas - too_few > 1:
        middle = point(speed, traffic, (too_few + best.replicas) // 2)
        if middle.keeps(p95_s):
            best = middle
        else:
            too_few = middle.replicas
    return best


def alone_s(speed: Speed, traffic: Traffic) -> float:
    """95 % of the requests take no less than this, wherever they are alone."""
    long = sorted(traffic.lengths)[len(traffic.lengths) * 95 // 100]
    return speed.cost.of(long, 1) + FRONT_S


def around(speed: Speed, traffic: Traffic, best: Point) -> Iterator[Point]:
    """One replica fewer, so many, and one more."""
    if best.replicas > 1:
        yield point(speed, traffic, best.replicas - 1)
    yield best
    yield point(speed, traffic, best.replicas + 1)


def num_fronts(traffic: Traffic) -> int:
    """Services, each with an HTTP process of its own, that so many requests need."""
    seconds = traffic.requests_per_s * (FRONT_CPU_S + FRONT_CPU_ROW_S * traffic.rows)
    return max(1, math.ceil(seconds / FRONT_BUSY))
