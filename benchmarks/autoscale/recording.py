"""One pod under the load of a day, compressed into minutes: what came in and what the pod said of itself, as CSV.

The load rises in the morning, sags at noon, rises again and ends with a burst. It is sent as an open loop to a server
that runs already, whose own /metrics are written down: what an autoscaler would have seen.
"""

from __future__ import annotations

import asyncio
import csv
import random
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from math import exp
from pathlib import Path

from service.tools.bench.client import Client
from service.tools.bench.load import Request

STEP_S = 5.0
BUSY = "erlangshen_replica_busy_seconds_total"
TOKENS = "erlangshen_input_tokens_total"
WAIT = "erlangshen_queue_predicted_wait_seconds"


@dataclass(frozen=True, slots=True)
class Step:
    """STEP_S seconds of one pod."""

    seconds: float
    tokens_per_s: float
    utilization: float
    wait_s: float


def level(share: float) -> float:
    """The load at this share of the day, of its peak: two humps, and a burst near the end."""
    humps = 0.75 * exp(-(((share - 0.3) / 0.1) ** 2)) + 0.85 * exp(-(((share - 0.65) / 0.12) ** 2))
    burst = 1.0 if 0.88 <= share < 0.94 else 0.0
    return max(0.08, humps, burst)


async def record(port: int, requests: Iterator[Request], peak_rate: float, day_s: float) -> list[Step]:
    """A step for each STEP_S seconds; `peak_rate` is in requests a second."""
    client = Client("127.0.0.1", port)
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(_watch(Client("127.0.0.1", port), day_s))
        group.create_task(_send(client, requests, peak_rate, day_s))
    client.close()
    return watching.result()


async def _send(client: Client, requests: Iterator[Request], peak_rate: float, day_s: float) -> None:
    rng, start = random.Random(1), time.perf_counter()
    due = 0.0
    async with asyncio.TaskGroup() as group:
        while due < day_s:
            await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
            group.create_task(_ask(client, next(requests)))
            due += rng.expovariate(peak_rate * level(due / day_s))


async def _ask(client: Client, request: Request) -> None:
    with suppress(OSError):  # a connection that breaks was load, too
        await client.send("POST", request.path, request.body)


async def _watch(client: Client, day_s: float) -> list[Step]:
    steps: list[Step] = []
    start = time.perf_counter()
    before = (0.0, *await _look(client))
    while (now := time.perf_counter() - start) < day_s:
        await asyncio.sleep(len(steps) * STEP_S + STEP_S - now)
        after = (time.perf_counter() - start, *await _look(client))
        seconds, tokens, busy = (new - old for new, old in zip(after[:3], before[:3], strict=True))
        steps.append(Step(round(after[0], 1), round(tokens / seconds, 1), round(busy / seconds, 3), round(after[3], 3)))
        before = after
    return steps


async def _look(client: Client) -> tuple[float, float, float]:
    """Tokens and busy seconds so far, and the wait that is predicted now."""
    text = (await client.send("GET", "/metrics")).body.decode()
    return _sum_of(TOKENS, text), _sum_of(BUSY, text), _sum_of(WAIT, text)


def _sum_of(name: str, metrics: str) -> float:
    return sum(map(float, re.findall(rf"^{name}(?:{{.*}})? (\S+)", metrics, re.MULTILINE)))


def write(file: Path, steps: list[Step]) -> None:
    with file.open("w", newline="") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow([one.name for one in fields(Step)])
        rows.writerows(astuple(step) for step in steps)


def read(file: Path) -> list[Step]:
    with file.open(newline="") as stream:
        return [Step(**{name: float(value) for name, value in row.items()}) for row in csv.DictReader(stream)]
