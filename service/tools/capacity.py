"""Capacity planning: the fewest replicas for a load, and the greatest load for some replicas.

The speed of a model is the cost model that a server has fitted, or a benchmark has measured. A discrete-event
simulation of the queue gives the latencies of a number of replicas under Poisson arrivals.
"""

from __future__ import annotations

import json
import math
import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from heapq import heappop, heappush
from itertools import chain, cycle
from pathlib import Path
from statistics import quantiles
from typing import Any

from service.batching.latency_model import Cost
from service.metric_labels import COSTS
from service.tools.bench.server_metrics import parse_samples

NUM_IN_FLIGHT = 2
"""Batches that a replica holds: one is computed, the next one waits in its pipe."""

NUM_REQUESTS = 20_000
"""Per simulation: enough for a 95th percentile that varies by a few hundredths between seeds."""

FRONT_S = 0.0011
"""Latency added by HTTP, tokenisation, queue and pipe, as `python -m benchmarks.http front` measures it on a CPU with
avx512_bf16; the slower CPU of benchmarks/results/front.json takes three times as long."""

FRONT_CPU_S, FRONT_CPU_ROW_S = 0.00037, 0.000047
"""CPU time of the HTTP process per request and per row, from the same run."""

FRONT_BUSY = 0.7
"""The planned utilisation of that process's core."""

IDLE = 0.02
"""Below this utilisation more replicas do not lower the latency."""

ROUNDING = 1e-9
"""Of utilisations: a rate that was computed from a number of replicas gives this number again."""

RATE_STEP = 0.01
"""Relative precision of the greatest rate; the simulation's own is no better."""


@dataclass(frozen=True, slots=True)
class Speed:
    """The measured speed of a model on a device; a full batch has `budget` tokens."""

    model: str
    device: str
    precision: str
    cost: Cost
    budget: int

    def tokens_per_s(self, row_tokens: float) -> float:
        """Throughput of one replica with full batches of rows of that length."""
        return self.budget / self.cost.of(self.budget, max(1, round(self.budget / row_tokens)))

    def as_json(self) -> dict[str, Any]:
        costs = {f"{of}_s": getattr(self.cost, of) for of in COSTS}
        return {"model": self.model, "device": self.device, "precision": self.precision, **costs, "budget": self.budget}


def parse_speeds(page: str) -> list[Speed]:
    """The speeds of all models that the server has measured, from its /metrics page, in the order of the page.

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
    """The `speeds` of a result of `python -m benchmarks.engine speed`. Raises OSError, or ValueError if it has none."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or "speeds" not in found:
        raise ValueError("the file has no `speeds`: make one with python -m benchmarks.engine speed --json FILE")
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


@dataclass(frozen=True)
class Traffic:
    """Poisson arrivals of requests, which are taken from `requests` in turn: the tokens of each row of a request."""

    requests_per_s: float
    requests: Sequence[Sequence[int]]

    @classmethod
    def alike(cls, requests_per_s: float, rows: int, lengths: Sequence[int]) -> Traffic:
        """Requests of `rows` rows; the rows' numbers of tokens are taken from `lengths` in turn."""
        endless = cycle(lengths)
        return cls(requests_per_s, [[next(endless) for _ in range(rows)] for _ in lengths])

    def at(self, requests_per_s: float) -> Traffic:
        return replace(self, requests_per_s=requests_per_s)

    @cached_property
    def row_lengths(self) -> Sequence[int]:
        """The tokens of all rows, in rising order."""
        return sorted(chain.from_iterable(self.requests))

    @property
    def row_tokens(self) -> float:
        return sum(self.row_lengths) / len(self.row_lengths)

    @property
    def rows(self) -> float:
        """Mean rows of a request."""
        return len(self.row_lengths) / len(self.requests)

    @property
    def tokens_per_s(self) -> float:
        return self.requests_per_s * self.rows * self.row_tokens


@dataclass(slots=True, eq=False)
class _Request:
    arrived_s: float
    num_missing: int


@dataclass(slots=True, eq=False)
class _Replica:
    free_at: float = 0.0
    in_flight: int = 0


class _Pool:
    """Replicas by the number of batches in flight; a dict is an ordered set."""

    def __init__(self, num_replicas: int) -> None:
        self._by_in_flight = [{_Replica(): None for _ in range(num_replicas)}, *({} for _ in range(NUM_IN_FLIGHT))]

    def find_free(self) -> _Replica | None:
        """The replica with the fewest batches, None if all are full."""
        return next((next(iter(replicas)) for replicas in self._by_in_flight[:-1] if replicas), None)

    def add_batches(self, replica: _Replica, num_batches: int) -> None:
        """`num_batches` is 1 when one starts, -1 when one ends."""
        del self._by_in_flight[replica.in_flight][replica]
        replica.in_flight += num_batches
        self._by_in_flight[replica.in_flight][replica] = None


@dataclass(slots=True)
class _Queue:
    """Rows in order of arrival, taken in batches of at most `budget` tokens."""

    budget: int
    rows: deque[tuple[_Request, int]] = field(default_factory=deque)

    def take(self) -> list[tuple[_Request, int]]:
        batch: list[tuple[_Request, int]] = []
        tokens_left = self.budget
        while self.rows and (not batch or self.rows[0][1] <= tokens_left):
            batch.append(self.rows.popleft())
            tokens_left -= batch[-1][1]
        return batch


def simulate(speed: Speed, traffic: Traffic, replicas: int, num_requests: int, seed: int = 1) -> list[float]:
    """Latencies of the requests in seconds, in the order in which they end, without the first tenth (warm-up)."""
    arrivals = _arrivals(traffic, num_requests, random.Random(seed))
    queue, pool = _Queue(speed.budget), _Pool(replicas)
    ends: list[tuple[float, int, _Replica, list[tuple[_Request, int]]]] = []
    latencies: list[float] = []
    number, arrival = 0, next(arrivals, None)
    while arrival or ends:
        if arrival and (not ends or arrival[0].arrived_s <= ends[0][0]):
            request, rows = arrival
            now = request.arrived_s
            queue.rows.extend((request, tokens) for tokens in rows)
            arrival = next(arrivals, None)
        else:
            now, _, replica, batch = heappop(ends)
            pool.add_batches(replica, -1)
            latencies += _settle(batch, now)
        while queue.rows and (free := pool.find_free()):
            batch = queue.take()
            free.free_at = max(now, free.free_at) + speed.cost.of(sum(tokens for _, tokens in batch), len(batch))
            pool.add_batches(free, +1)
            number += 1
            heappush(ends, (free.free_at, number, free, batch))
    return latencies[len(latencies) // 10 :]


def _arrivals(traffic: Traffic, num_requests: int, rng: random.Random) -> Iterator[tuple[_Request, Sequence[int]]]:
    now, requests = 0.0, cycle(traffic.requests)
    for _ in range(num_requests):
        now += rng.expovariate(traffic.requests_per_s)
        rows = next(requests)
        yield _Request(now, len(rows)), rows


def _settle(batch: list[tuple[_Request, int]], now: float) -> Iterator[float]:
    for request, _ in batch:
        request.num_missing -= 1
        if not request.num_missing:
            yield now - request.arrived_s


@dataclass(frozen=True, slots=True)
class Target:
    """95 % of the requests within `p95_s`, and replicas that compute for at most the share `max_used` of the time."""

    p95_s: float
    max_used: float = 1.0


@dataclass(frozen=True, slots=True)
class Point:
    """Simulated utilisation and latencies of a number of replicas: seconds, None if the load exceeds the capacity."""

    replicas: int
    used: float
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None

    def meets(self, target: Target) -> bool:
        return self.p95 is not None and self.p95 <= target.p95_s and self.used <= target.max_used + ROUNDING


def simulate_point(speed: Speed, traffic: Traffic, replicas: int) -> Point:
    used = traffic.tokens_per_s / speed.tokens_per_s(traffic.row_tokens) / replicas
    if used >= 1:
        return Point(replicas, used)
    cuts = quantiles(simulate(speed, traffic, replicas, NUM_REQUESTS), n=100)
    return Point(replicas, used, *(cuts[share - 1] + FRONT_S for share in (50, 95, 99)))


def find_fewest(speed: Speed, traffic: Traffic, target: Target) -> Point:
    """The fewest replicas that meet `target`; if no number does, a point that does not."""
    needed = traffic.tokens_per_s / speed.tokens_per_s(traffic.row_tokens) / target.max_used
    least = max(1, math.ceil(needed - ROUNDING))
    too_few = least - 1
    best = simulate_point(speed, traffic, least)
    if min_p95_s(speed, traffic) > target.p95_s:
        return best
    while not best.meets(target) and best.used > IDLE:
        too_few = best.replicas
        best = simulate_point(speed, traffic, 2 * best.replicas)
    while best.meets(target) and best.replicas - too_few > 1:
        middle = simulate_point(speed, traffic, (too_few + best.replicas) // 2)
        if middle.meets(target):
            best = middle
        else:
            too_few = middle.replicas
    return best


def find_most(speed: Speed, traffic: Traffic, replicas: int, target: Target) -> float:
    """The greatest rate of requests like those of `traffic` with which `replicas` meet `target`; 0 if none does.

    The inverse of `find_fewest`, by the same simulation: at this rate it returns at most `replicas`.
    """
    if min_p95_s(speed, traffic) > target.p95_s:
        return 0.0
    full = replicas * speed.tokens_per_s(traffic.row_tokens) / (traffic.rows * traffic.row_tokens)

    def is_met(rate: float) -> bool:
        return simulate_point(speed, traffic.at(rate), replicas).meets(target)

    least, most = 0.0, full * target.max_used
    if is_met(most):
        return most
    while most - least > RATE_STEP * most and most > IDLE * full:
        middle = (least + most) / 2
        if is_met(middle):
            least = middle
        else:
            most = middle
    return least


def min_p95_s(speed: Speed, traffic: Traffic) -> float:
    """A lower bound with any number of replicas: the 95th percentile of row lengths, alone in its batch."""
    long = traffic.row_lengths[len(traffic.row_lengths) * 95 // 100]
    return speed.cost.of(long, 1) + FRONT_S


def neighbours(speed: Speed, traffic: Traffic, best: Point) -> Iterator[Point]:
    """One replica fewer, `best` itself, and one replica more."""
    if best.replicas > 1:
        yield simulate_point(speed, traffic, best.replicas - 1)
    yield best
    yield simulate_point(speed, traffic, best.replicas + 1)


def num_fronts(traffic: Traffic) -> int:
    """Services that the traffic needs: each has one HTTP process, which is planned up to FRONT_BUSY."""
    seconds = traffic.requests_per_s * (FRONT_CPU_S + FRONT_CPU_ROW_S * traffic.rows)
    return max(1, math.ceil(seconds / FRONT_BUSY))
