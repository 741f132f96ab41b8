"""How many replicas a wish needs: the fewest whose simulated latencies keep to it.

Knows no flags and prints nothing.
"""

from __future__ import annotations

import json
import math
import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import cycle
from pathlib import Path
from statistics import quantiles
from typing import Any

from service.batching.latency_model import Cost
from service.metric_labels import COSTS
from service.tools.bench.server_metrics import parse_samples


@dataclass(frozen=True, slots=True)
class Speed:
    """A full batch has `budget` tokens."""

    model: str
    device: str
    precision: str
    cost: Cost
    budget: int

    def tokens_per_s(self, row_tokens: float) -> float:
        """Of one replica that computes nothing but full batches of such rows."""
        return self.budget / self.cost.of(self.budget, max(1, round(self.budget / row_tokens)))

    def as_json(self) -> dict[str, Any]:
        costs = {f"{of}_s": getattr(self.cost, of) for of in COSTS}
        return {"model": self.model, "device": self.device, "precision": self.precision, **costs, "budget": self.budget}


def parse_speeds(page: str) -> list[Speed]:
    """Of every model that the server has measured, from its /metrics page, in the order of the page.

    Raises:
        ValueError: the page is not in Prometheus' text format.
    """
    budgets: dict[str, int] = {}
    costs: dict[str, dict[str, float]] = {}
    about: dict[str, dict[str, str]] = {}
    for sample in parse_samples(page):
        labels = sample.labels
        match sample.name:
            case "erlangshen_batch_budget_tokens" if sample.value:
                budgets[labels["model"]] = round(sample.value)
            case "erlangshen_predicted_cost_seconds":
                costs.setdefault(labels["model"], {})[labels["of"]] = sample.value
            case "erlangshen_replica_model_info":
                about[labels["model"]] = labels
    return [
        Speed(
            model,
            about.get(model, {}).get("device", ""),
            about.get(model, {}).get("precision", ""),
            Cost(**{of: costs.get(model, {}).get(of, 0.0) for of in COSTS}),
            budget,
        )
        for model, budget in budgets.items()
    ]


def read_speeds(path: Path) -> list[Speed]:
    """The `speeds` of a results file of `python -m benchmarks.speed`. Raises OSError, and ValueError if it has none."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or "speeds" not in found:
        raise ValueError("it has no `speeds`; python -m benchmarks.speed makes such a file")
    return [
        Speed(one["model"], one["device"], one["precision"], Cost(*(one[f"{of}_s"] for of in COSTS)), one["budget"])
        for one in found["speeds"]
    ]


def choose_speed(speeds: Iterable[Speed], model: str | None) -> Speed:
    """The speed of this model, or the first one. Raises ValueError if there is none."""
    known = list(speeds)
    for speed in known:
        if model in (None, speed.model):
            return speed
    if not known:
        raise ValueError("the server or the file has no measured model")
    raise ValueError(f"no speed of model {model!r}; measured: {', '.join(speed.model for speed in known)}")


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
