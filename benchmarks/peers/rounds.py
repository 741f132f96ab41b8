"""The measurement, every server in turn with the same texts, round after round; and the ratios of the rounds.

A run is clocked from one answer to another while all clients go on sending: neither a start nor a tail is in it. It is
whole passes over the same texts, four or more, until enough time has gone by. No server gains from its share of the
texts. Lengths are drawn evenly from the distribution, so that a pass is long enough to be one. All rounds of few
clients come before those of many: a server that learns how long to wait for a batch does not carry it from a high load
to a low one.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from benchmarks.common import spread
from benchmarks.peers.processes import Running
from service.tools.bench.texts import Lengths, make_text

SPECIAL_TOKENS = 2
LEAST_PASSES = 4
LEAST_LEAD = 8
"""Answers before the clock starts."""
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Measured:
    round: int
    server: str
    concurrency: int
    requests: int
    seconds: float
    cpu_s: float = 0.0
    """CPU seconds of the server, for each request."""

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


@dataclass(slots=True)
class Passes:
    """The clock of a run: it starts at the answer that ends the lead, and stops at one that ends a pass."""

    lead: int
    texts: int
    min_seconds: float
    requests: int = 0
    seconds: float = 0.0
    answers: int = 0
    """All, those before and after the clock included."""
    _started: float = 0.0

    @property
    def is_over(self) -> bool:
        return self.requests > 0

    def answered(self, now: float) -> None:
        self.answers += 1
        if self.answers == self.lead:
            self._started = now
        passes, rest = divmod(self.answers - self.lead, self.texts)
        if self.is_over or rest or passes < LEAST_PASSES or now - self._started < self.min_seconds:
            return
        self.requests, self.seconds = passes * self.texts, now - self._started


def make_texts(lengths: str, count: int, seed: int) -> list[str]:
    """Texts whose tokens, special ones included, follow the distribution."""
    rng = random.Random(seed)
    drawn = Lengths.parse(lengths).draw(count, rng)
    return [make_text(max(1, length - SPECIAL_TOKENS), rng) for length in drawn]


async def measure(
    servers: Sequence[Running], texts: Sequence[str], concurrencies: Sequence[int], rounds: int, min_seconds: float
) -> AsyncIterator[Measured]:
    """All are suspended when this begins and when it ends."""
    for concurrency in concurrencies:
        for number in range(rounds):
            # Another one goes first in every round: none always has the machine at its coolest.
            for server in (*servers[number % len(servers) :], *servers[: number % len(servers)]):
                passes = Passes(max(LEAST_LEAD, 2 * concurrency), len(texts), min_seconds)
                server.resume()
                before = server.cpu_s()
                await _run(server, texts, concurrency, passes)
                cpu_s = (server.cpu_s() - before) / passes.answers
                server.suspend()
                yield Measured(number, server.name, concurrency, passes.requests, passes.seconds, cpu_s)


async def _run(server: Running, texts: Sequence[str], concurrency: int, passes: Passes) -> None:
    """RuntimeError for any answer but 200: a server that refuses is not measured."""
    bodies = cycle([server.server.request(text) for text in texts])

    async def client() -> None:
        while not passes.is_over:
            async with asyncio.timeout(TIMEOUT_S):
                response = await server.ask(next(bodies))
            if response.status != 200:
                raise RuntimeError(f"{server.name} answers {response.status}: {response.body[:200]!r}")
            passes.answered(time.perf_counter())

    await asyncio.gather(*(client() for _ in range(concurrency)))


async def answers(server: Running, texts: Sequence[str]) -> list[tuple[str, float]]:
    """Label and score of each text, asked one by one."""
    replies = [await server.ask(server.server.request(text)) for text in texts]
    return [server.server.read(json.loads(reply.body)) for reply in replies]


BEST = "best peer"
BEST_EQUAL = "best peer in the same precision"
BEST_BATCHING = "best batching peer"
"""Without the server that computes one text at a time, which competes only where padding costs most."""


BITS = {"float32": 32, "bfloat16": 16, "int8": 8}


@dataclass(frozen=True, slots=True)
class Kind:
    """Ours is compared with peers that compute in as many bits or in more."""

    precision: str
    is_batching: bool = True

    def is_rival(self, peer: Kind) -> bool:
        return BITS[peer.precision] >= BITS[self.precision]


def summarize(
    measured: Sequence[Measured], ours: Mapping[str, Kind], peers: Mapping[str, Kind]
) -> list[dict[str, Any]]:
    """One entry for each concurrency."""
    levels = dict.fromkeys(one.concurrency for one in measured)
    return [_level([one for one in measured if one.concurrency == level], ours, peers) for level in levels]


def _level(measured: Sequence[Measured], ours: Mapping[str, Kind], peers: Mapping[str, Kind]) -> dict[str, Any]:
    numbers = sorted({one.round for one in measured})
    rounds = [{one.server: one.rate for one in measured if one.round == number} for number in numbers]
    cpu = [{one.server: 1000 * one.cpu_s for one in measured if one.round == number} for number in numbers]
    return {
        "concurrency": measured[0].concurrency,
        "requests_per_s": {server: spread([rates[server] for rates in rounds]) for server in (*ours, *peers)},
        "cpu_ms_of_a_request": {server: spread([each[server] for each in cpu]) for server in (*ours, *peers)},
        "ours_over": {
            server: _over(server, rounds, kind, {name: peer for name, peer in peers.items() if kind.is_rival(peer)})
            for server, kind in ours.items()
        },
    }


def _over(
    server: str, rounds: Sequence[Mapping[str, float]], kind: Kind, peers: Mapping[str, Kind]
) -> dict[str, dict[str, float]]:
    """Ratios of one round each: what slows the machine for a while slows both."""
    rivals = {BEST: list(peers), BEST_BATCHING: [name for name, peer in peers.items() if peer.is_batching]}
    if kind.precision != "float32":  # there it is the best of all
        rivals[BEST_EQUAL] = [name for name, peer in peers.items() if peer.precision == kind.precision]
    rivals |= {name: [name] for name in peers}
    return {
        rival: spread([rates[server] / max(rates[name] for name in names) for rates in rounds])
        for rival, names in rivals.items()
        if names
    }


def table(levels: Sequence[dict[str, Any]]) -> str:
    """Median requests per second by server and concurrency, the CPU time of a request, then ours over the best: median
    (least to most)."""
    levels_of = [f"c={level['concurrency']}" for level in levels]
    lines = []
    for title, key in (("requests/s", "requests_per_s"), ("CPU ms of a request", "cpu_ms_of_a_request")):
        lines.append([title, *levels_of])
        lines += [[name, *(f"{one[key][name]['median']:.1f}" for one in levels)] for name in levels[0][key]]
    for name, rivals in levels[0]["ours_over"].items():
        for rival in (rival for rival in (BEST, BEST_EQUAL, BEST_BATCHING) if rival in rivals):
            ratios = [one["ours_over"][name][rival] for one in levels]
            cells = [f"{one['median']:.2f} ({one['min']:.2f} to {one['max']:.2f})" for one in ratios]
            lines.append([f"{name} / {rival}", *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(1 + len(levels))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
