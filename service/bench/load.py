"""The two ways to load a server, and what came of each request.

Closed loop: so many clients, each sends its next request when its last is answered. Open loop: requests leave at random
moments (Poisson) whatever the server does, and latency counts from the moment at which a request was meant to leave, so
that a stall shows in every request that it delayed. Knows the server by its client only, and draws no tables.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from service.bench.report import Sample
from service.bench.requests import Request
from service.bench.wire import Client

Tick = Callable[[float, int], object]
"""Hears the seconds measured so far and the requests counted in them."""


@dataclass(frozen=True, slots=True)
class Load:
    """So many clients (closed) or requests per second (open)."""

    kind: Literal["concurrency", "rate"]
    level: float

    @property
    def name(self) -> str:
        return f"{self.kind} {self.level:g}"


class Watch(Protocol):
    """The server's own totals, looked at when the measurement begins and when it ends."""

    async def begin(self) -> None: ...

    async def end(self) -> None: ...


class Run:
    """One measurement. Requests that begin while warming up are sent like the others and are not kept."""

    def __init__(self, client: Client, requests: Iterator[Request], timeout_s: float, tick: Tick) -> None:
        self._client = client
        self._requests = requests
        self._timeout_s = timeout_s
        self._tick = tick
        self.samples: list[Sample] = []
        self.from_s = 0.0
        self.until_s = 0.0

    async def measure(self, load: Load, warm_up_s: float, duration_s: float, watch: Watch, rng: random.Random) -> None:
        self.from_s = time.perf_counter() + warm_up_s
        self.until_s = self.from_s + duration_s
        async with asyncio.TaskGroup() as group:
            group.create_task(self._look(watch))
            group.create_task(self.open(load.level, rng) if load.kind == "rate" else self.closed(int(load.level)))
        if load.kind == "concurrency":
            # A closed loop ends with requests that are answered after the end: neither work nor latency of its time.
            self.samples = [sample for sample in self.samples if sample.ended_s <= self.until_s]

    async def _look(self, watch: Watch) -> None:
        await asyncio.sleep(self.from_s - time.perf_counter())
        await watch.begin()
        await asyncio.sleep(self.until_s - time.perf_counter())
        await watch.end()

    async def closed(self, concurrency: int) -> None:
        async def client() -> None:
            while (now := time.perf_counter()) < self.until_s:
                await self.send(now)

        await asyncio.gather(*(client() for _ in range(concurrency)))

    async def open(self, rate: float, rng: random.Random) -> None:
        async with asyncio.TaskGroup() as group:
            due = time.perf_counter()
            while due < self.until_s:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(self.send(due))
                due += rng.expovariate(rate)

    async def send(self, started: float) -> None:
        """`started` is when the request was meant to leave: waiting for this line counts too."""
        request = next(self._requests)
        outcome, num_tokens = await self._outcome(request)
        ended = time.perf_counter()
        if started >= self.from_s:
            sample = Sample(request.task, started, ended - started, outcome, request.num_inputs, num_tokens)
            self.samples.append(sample)
            self._tick(min(ended, self.until_s) - self.from_s, len(self.samples))

    async def _outcome(self, request: Request) -> tuple[str, int]:
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._client.send("POST", request.path, request.body)
        except TimeoutError:
            return "timeout", 0
        except OSError:
            return "connection", 0
        if response.status != 200:
            return str(response.status), 0
        return "200", json.loads(response.body)["usage"]["tokens"]
