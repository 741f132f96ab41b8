"""The measurement: every server in turn gets the same texts from so many clients, round after round.

A run is a fixed amount of work: whole passes over the same texts until enough time has gone by, clocked from the first
request to the last answer. So no server is lucky with its texts, and slow ones are not cut off in a batch. Lengths are
drawn evenly from the distribution, so that a pass is long enough to be one.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.peers.running import Running
from service.bench.synthetic import Lengths, make_text

SPECIAL_TOKENS = 2
WARM_UP = 8
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Measured:
    round: int
    server: str
    concurrency: int
    requests: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def make_texts(lengths: str, count: int, seed: int) -> list[str]:
    """Texts whose tokens, special ones included, follow the distribution."""
    rng = random.Random(seed)
    drawn = Lengths.parse(lengths).draw(count, rng)
    return [make_text(max(1, length - SPECIAL_TOKENS), rng) for length in drawn]


async def measure(
    servers: Sequence[Running],
    texts: Sequence[str],
    *,
    concurrencies: Sequence[int],
    rounds: int,
    min_seconds: float,
    report: Callable[[Measured], object],
) -> list[Measured]:
    """All are suspended when this begins and when it ends."""
    measured = []
    for number in range(rounds):
        for concurrency in concurrencies:
            # Another one goes first in every round: nobody always has the machine at its coolest.
            for server in (*servers[number % len(servers) :], *servers[: number % len(servers)]):
                bodies = [server.server.request(text) for text in texts]
                server.resume()
                await _all_at_once(server, bodies[:WARM_UP])  # what stood still gets under way
                count, seconds = await _run(server, bodies, concurrency, min_seconds)
                server.suspend()
                measured.append(Measured(number, server.server.name, concurrency, count, seconds))
                report(measured[-1])
    return measured


async def _all_at_once(server: Running, bodies: Sequence[bytes]) -> None:
    await asyncio.gather(*(_ask(server, body) for body in bodies))


async def _run(server: Running, bodies: Sequence[bytes], concurrency: int, min_seconds: float) -> tuple[int, float]:
    """Requests and seconds of whole passes."""
    started = time.perf_counter()
    num_sent = 0

    async def client() -> None:
        nonlocal num_sent
        while num_sent % len(bodies) or time.perf_counter() - started < min_seconds or not num_sent:
            body = bodies[num_sent % len(bodies)]
            num_sent += 1
            await _ask(server, body)

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return num_sent, time.perf_counter() - started


async def _ask(server: Running, body: bytes) -> None:
    """RuntimeError for any answer but 200: a server that refuses is not measured."""
    async with asyncio.timeout(TIMEOUT_S):
        response = await server.ask(body)
    if response.status != 200:
        raise RuntimeError(f"{server.server.name} answers {response.status}: {response.body[:200]!r}")


async def answers(server: Running, texts: Sequence[str]) -> list[tuple[str, float]]:
    """Label and score of each text, asked one by one."""
    replies = [await server.ask(server.server.request(text)) for text in texts]
    return [server.server.read(json.loads(reply.body)) for reply in replies]
