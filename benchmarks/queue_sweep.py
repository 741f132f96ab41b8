"""How long requests of each class wait under mixed traffic: first in, first out against the order of our queue.

    python -m benchmarks.queue_sweep --json benchmarks/results/queue_sweep.json
    python -m benchmarks.queue_sweep --docs            # what that file says into docs/batching.md

Simulated time: the real queue, tickets and batch budget, with a latency model in place of the engine: on the CPU that
which was measured (`results/speed_cpu.json`), on the GPU an assumed one. So it runs in seconds, gives the same numbers
on every machine, and shows the order alone.

Traffic is Poisson. A request is one row of lognormal length (median 31 tokens, at most 512), counted as short (up to
32), medium (up to 128) or long; or, for a share of the tokens, a huge one of many rows. Load is the tokens that
come over those that full batches compute. Two batches are in flight, one computes, as in the service.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.about import about, parser_of, save
from service.batching import latency_model
from service.batching.jobs import Job, PendingRequest
from service.batching.latency_model import Cost
from service.batching.queue import Queue
from service.domain import Cls, Encoding, Output
from service.tools.capacity import choose_speed, read_speeds


@dataclass(frozen=True, slots=True)
class Case:
    """A device, as a latency model, and what a huge request is to it."""

    name: str
    cost: Cost
    huge_rows: int
    huge_length: int
    num_requests: int

    @property
    def full(self) -> int:
        return latency_model.choose_budget(self.cost, TARGET_S)


RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "batching.md"
MARKED = re.compile(r"(<!-- sweep: python -m benchmarks\.queue_sweep --docs -->\n).*?(<!-- /sweep -->)", re.DOTALL)
CPU_SPEEDS = RESULTS / "speed_cpu.json"
GPU_COST = Cost(batch=0.008, token=13e-6, row=2e-6)
"""Assumed, not measured."""

LOADS = (0.5, 0.7, 0.9)
CLASSES = ("short", "medium", "long", "huge")
TARGET_S, AGE_S = 0.5, 2.0
MEDIAN, SIGMA, LONGEST = 31, 0.9, 512
HUGE_SHARE = 0.3
NUM_IN_FLIGHT = 2
ZEROS = np.zeros(LONGEST, dtype=np.int32)
OUTPUT = Output(np.zeros((1, 1), dtype=np.float32))


def cases() -> tuple[Case, Case]:
    cpu = choose_speed(read_speeds(CPU_SPEEDS), "1.3B").cost
    return (
        Case("1.3B on a 2-core CPU, measured", cpu, huge_rows=64, huge_length=64, num_requests=10_000),
        Case("1.3B on a large GPU, assumed", GPU_COST, huge_rows=256, huge_length=288, num_requests=80_000),
    )


class Order(Protocol):
    """What decides which jobs make the next batch."""

    def push(self, jobs: list[Job]) -> None: ...

    def take(self, now: float) -> list[Job]: ...


class Fifo:
    """Jobs by arrival, up to the budget."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._jobs: deque[Job] = deque()

    def push(self, jobs: list[Job]) -> None:
        self._jobs.extend(jobs)

    def take(self, now: float) -> list[Job]:
        batch: list[Job] = []
        room = self._max_tokens
        while self._jobs and (not batch or self._jobs[0].num_tokens <= room):
            batch.append(self._jobs.popleft())
            room -= batch[-1].num_tokens
        return batch


@dataclass(frozen=True, slots=True)
class Arrival:
    at: float
    kind: str
    lengths: list[int]


def traffic(rng: random.Random, case: Case, tokens_per_s: float) -> Iterator[Arrival]:
    """Requests at a mean rate of so many tokens a second."""
    mean_row = sum(row_length(rng) for _ in range(10_000)) / 10_000
    huge_tokens = case.huge_rows * case.huge_length
    huge = HUGE_SHARE * mean_row / (HUGE_SHARE * mean_row + (1 - HUGE_SHARE) * huge_tokens)
    mean_request = (1 - huge) * mean_row + huge * huge_tokens
    at = 0.0
    for _ in range(case.num_requests):
        at += rng.expovariate(tokens_per_s / mean_request)
        is_huge = rng.random() < huge
        lengths = [case.huge_length] * case.huge_rows if is_huge else [row_length(rng)]
        yield Arrival(at, "huge" if is_huge else kind_of(lengths[0]), lengths)


def row_length(rng: random.Random) -> int:
    return min(LONGEST, max(3, round(rng.lognormvariate(math.log(MEDIAN), SIGMA))))


def kind_of(length: int) -> str:
    return "short" if length <= 32 else "medium" if length <= 128 else "long"


def simulate(order: Order, cost: Cost, arrivals: list[Arrival]) -> dict[str, list[float]]:
    """Seconds from arrival to answer of every request, by class."""
    latencies: dict[str, list[float]] = defaultdict(list)
    numbers, coming = count(), deque(arrivals)
    ends: list[tuple[float, int, float, list[Job]]] = []
    device_free = now = 0.0
    while coming or ends:
        if coming and (not ends or coming[0].at <= ends[0][0]):
            arrival = coming.popleft()
            now = arrival.at
            order.push(jobs_of(arrival, latencies[arrival.kind]))
        else:
            now, _, seconds, batch = heappop(ends)
            for job in batch:
                job.settle(OUTPUT, seconds, now)
        while len(ends) < NUM_IN_FLIGHT and (batch := order.take(now)):
            seconds = cost.of(sum(job.num_tokens for job in batch), len(batch))
            device_free = max(now, device_free) + seconds
            heappush(ends, (device_free, next(numbers), seconds, batch))
    return latencies


def jobs_of(arrival: Arrival, latencies: list[float]) -> list[Job]:
    encodings = [Encoding("m", ZEROS[:n], ZEROS[:n], ZEROS[:n], Cls()) for n in arrival.lengths]
    pending = PendingRequest(
        encodings, arrival.at, lambda settled: latencies.append(settled.queue_s + settled.compute_s)
    )
    return [Job(encoding, arrival.at, [(pending, row)]) for row, encoding in enumerate(encodings)]


def sweep(devices: Iterable[Case], seed: int) -> Iterator[dict[str, Any]]:
    """A result per device, load and order."""
    for case in devices:
        capacity = case.full / case.cost.of(case.full, case.full // latency_model.TYPICAL_ROW)
        for load in LOADS:
            arrivals = list(traffic(random.Random(seed), case, load * capacity))
            orders: dict[str, Order] = {
                "fifo": Fifo(case.full),
                "ours": Queue(max_age_s=AGE_S, budget=lambda model, full=case.full: full, dropped=_nobody_leaves),
            }
            for name, order in orders.items():
                found = simulate(order, case.cost, arrivals)
                table = {kind: percentiles(found[kind]) for kind in CLASSES}
                yield {"device": case.name, "budget": case.full, "load": load, "order": name, "classes": table}


def percentiles(seconds: list[float]) -> dict[str, float]:
    p50, p95 = np.percentile(seconds, (50, 95))
    return {"requests": len(seconds), "p50_s": round(float(p50), 4), "p95_s": round(float(p95), 4)}


def _nobody_leaves(reason: str, jobs: object) -> None:
    raise AssertionError(reason)


def show(results: list[dict[str, Any]]) -> None:
    print(f"{'device':32}{'load':>5}  {'class':8}{'p50 fifo':>10}{'ours':>9}{'p95 fifo':>10}{'ours':>9}   seconds")
    for fifo, ours in _pairs(results):
        for kind in CLASSES:
            a, b = fifo["classes"][kind], ours["classes"][kind]
            cells = f"{a['p50_s']:10.3f}{b['p50_s']:9.3f}{a['p95_s']:10.3f}{b['p95_s']:9.3f}"
            print(f"{fifo['device']:32}{fifo['load']:5.1f}  {kind:8}{cells}")


def table(results: list[dict[str, Any]]) -> str:
    """For the page."""
    lines = [f"| | load | | {' | '.join(CLASSES)} |", "|---|---:|---|" + "---:|" * len(CLASSES)]
    for fifo, ours in _pairs(results):
        for quantile in ("p50", "p95"):
            seconds = ((of["classes"][kind][f"{quantile}_s"] for of in (fifo, ours)) for kind in CLASSES)
            cells = " | ".join(" → ".join(f"{value:.3g}" for value in both) for both in seconds)
            lines.append(f"| {fifo['device']} | {fifo['load']:.0%} | {quantile} | {cells} |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The page with the table that the committed result makes."""
    results = json.loads((RESULTS / "queue_sweep.json").read_text(encoding="utf-8"))["results"]
    return MARKED.sub(lambda found: f"{found[1]}{table(results)}{found[2]}", text)


def _pairs(results: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """First in, first out and ours, of the same device and load."""
    return zip(results[::2], results[1::2], strict=True)


def main() -> None:
    parser = parser_of("queue_sweep", __doc__)
    parser.set_defaults(machine="none: simulated time")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--docs", action="store_true", help="simulate nothing, but write the page's table")
    arguments = parser.parse_args()
    if arguments.docs:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    devices = cases()
    results = list(sweep(devices, arguments.seed))
    show(results)
    setting = {
        "seed": arguments.seed,
        "cases": [asdict(case) for case in devices],
        "max_age_s": AGE_S,
        "batch_target_s": TARGET_S,
        "row_tokens": {"median": MEDIAN, "sigma": SIGMA, "longest": LONGEST},
        "huge_share_of_tokens": HUGE_SHARE,
    }
    made = about("queue_sweep", __doc__, arguments.machine, "numpy")
    save({**made, **setting, "results": results}, arguments.json)


if __name__ == "__main__":
    main()
