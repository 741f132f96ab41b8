"""The two ways to load a server, and what came of each request.

Closed loop: so many clients, each sends its next request when its last is answered. Open loop: requests leave at random
moments (Poisson) whatever the server does, and latency counts from the moment at which a request was meant to leave, so
that a stall shows in every request that it delayed. Knows the server by its client only, and draws no tables.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from service.bench.report import Sample, Window
from service.bench.requests import Request
from service.bench.wire import Client

Tick = Callable[[float, int], object]
"""Hears the seconds measured so far and the requests that ended in them."""


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
    """One measurement. Every request is kept, those of the warm-up and those that end too late, too: what counts for
    what is said by the window."""

    def __init__(
        self,
        client: Client,
        requests: Iterator[Request],
        timeout_s: float,
        tick: Tick,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._client = client
        self._requests = requests
        self._timeout_s = timeout_s
        self._tick = tick
        self._clock = clock
        self._num_ended = 0
        self.samples: list[Sample] = []
        self.window = Window(0.0, math.inf)

    async def measure(self, load: Load, warm_up_s: float, duration_s: float, watch: Watch, rng: random.Random) -> None:
        from_s = self._clock() + warm_up_s
        self.window = Window(from_s, from_s + duration_s)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._look(watch))
            group.create_task(self.open(load.level, rng) if load.kind == "rate" else self.closed(int(load.level)))

    async def _look(self, watch: Watch) -> None:
        await asyncio.sleep(self.window.from_s - self._clock())
        await watch.begin()
        await asyncio.sleep(self.window.until_s - self._clock())
        await watch.end()

    async def closed(self, concurrency: int) -> None:
        async def client() -> None:
            while (now := self._clock()) < self.window.until_s:
                await self.send(now)

        await asyncio.gather(*(client() for _ in range(concurrency)))

    async def open(self, rate: float, rng: random.Random) -> None:
        async with asyncio.TaskGroup() as group:
            due = self._clock()
            while due < self.window.until_s:
                await asyncio.sleep(max(0.0, due - self._clock()))
                group.create_task(self.send(due))
                due += rng.expovariate(rate)

    async def send(self, started: float) -> None:
        """`started` is when the request was meant to leave: waiting for this line counts too."""
        request = next(self._requests)
        outcome, num_tokens = await self._outcome(request)
        ended = self._clock()
        sample = Sample(request.task, started, ended - started, outcome, request.num_inputs, num_tokens)
        self.samples.append(sample)
        if self.window.holds(ended):
            self._num_ended += 1
            self._tick(ended - self.window.from_s, self._num_ended)

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
