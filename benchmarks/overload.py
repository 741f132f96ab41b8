"""Overload and fairness: what is answered under ten times the peak, and what accounts get next to each other.

    python -m benchmarks.overload --json benchmarks/results/overload.json            # about two minutes
    python -m benchmarks.overload fairness --json benchmarks/results/fairness.json   # two minutes

The real server has one compute thread on a core of its own; this process and the server's parent share the others.
Latency counts from the moment at which a request was meant to leave.

flood: one distinct text a request (lognormal lengths, median 31 characters); after the peak every request carries the
target as its deadline, in a header. In turn: the peak (closed loop, 32 clients), half of it, ten times the peak (both
open loops), half of the peak again at once.

fairness: `live` sends one text at a time at random moments; `bulk` keeps 32 requests of 16 texts waiting. In turn: live
alone; both under keys of their own; both under the same key; bulk with low priority; then `bulk` and `heavy`, a key
with three times its weight, without live.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.common import about, auto_precision, parser_of, save
from service.api.accounts import hash_of, new_secret
from service.tools.bench.client import Client
from service.tools.bench.load import NEWS
from service.tools.bench.texts import Lengths, make_text
from tests.support.servers import Server, serving

LENGTHS = "lognormal:31:152"
CLIENTS, BULK_ROWS = 32, 16
NUM_TEXTS = 20_000
"""Equal rows in flight would be computed once; no text comes again within seconds."""

MAX_IN_FLIGHT = 2000
REPLY_S = 15.0
PATIENT_MS = 60_000
SEED = 1
SAMPLE_S = 0.5
WEIGHTS = {"live": 1, "bulk": 1, "heavy": 3}
TARGETS = {"goodput_over_peak": "at least 0.9", "in_time_of_accepted": "at least 0.99", "recovery_s": "at most 2"}


class HeaderClient(Client):
    """The lean client with more headers; their names are written with underscores."""

    def __init__(self, port: int, key: str = "", **headers: str) -> None:
        super().__init__("127.0.0.1", port, key)
        self._lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()).encode()

    def _message(self, method: str, path: str, body: bytes) -> bytes:
        first, _, rest = super()._message(method, path, body).partition(b"\r\n")
        return first + b"\r\n" + self._lines + rest


@dataclass(frozen=True, slots=True)
class Reply:
    """`due` is when the request was meant to leave, `code` that of an error; status 0 means that no answer came."""

    due: float
    at: float
    status: int
    code: str = ""

    @property
    def seconds(self) -> float:
        return self.at - self.due


async def send(client: Client, body: bytes, due: float) -> Reply:
    try:
        async with asyncio.timeout(REPLY_S):
            reply = await client.send("POST", "/v1/classify", body)
    except OSError:  # a TimeoutError is one
        return Reply(due, time.perf_counter(), 0)
    at = time.perf_counter()
    return Reply(due, at, reply.status, "" if reply.status == 200 else json.loads(reply.body)["code"])


async def open_loop(
    client: Client, bodies: Iterator[bytes], rate: float, seconds: float, rng: random.Random
) -> list[Reply]:
    """Requests leave at random moments (Poisson), whatever the server does; returns when all are answered."""
    end = time.perf_counter() + seconds
    sent: list[asyncio.Task[Reply]] = []
    refused: list[Reply] = []
    in_flight: set[asyncio.Task[Reply]] = set()
    due = time.perf_counter() + rng.expovariate(rate)
    while due < end:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        if len(in_flight) < MAX_IN_FLIGHT:
            task = asyncio.create_task(send(client, next(bodies), due))
            in_flight.add(task)
            task.add_done_callback(in_flight.discard)
            sent.append(task)
        else:
            refused.append(Reply(due, time.perf_counter(), 0))
        due += rng.expovariate(rate)
    return [*await asyncio.gather(*sent), *refused]


async def closed_loop(client: Client, bodies: Iterator[bytes], clients: int, seconds: float) -> list[Reply]:
    """The replies that came in this time; each client sends its next request when its last is answered."""
    until = time.perf_counter() + seconds
    replies: list[Reply] = []

    async def one() -> None:
        while (now := time.perf_counter()) < until:
            replies.append(await send(client, next(bodies), now))

    await asyncio.gather(*(one() for _ in range(clients)))
    return [reply for reply in replies if reply.at <= until]


@contextmanager
def pinned_server(source: str, *flags: str) -> Iterator[Server]:
    cores = os.sched_getaffinity(0)
    try:
        with serving("--threads", "1", "--model", source, *flags) as server:
            server.pin()
            yield server
    finally:
        os.sched_setaffinity(0, cores)


@cache
def texts(num: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [make_text(length, rng) for length in Lengths.parse(LENGTHS).draw(num, rng)]


def body(inputs: str | list[str]) -> bytes:
    return json.dumps({"inputs": inputs, "labels": NEWS}, ensure_ascii=False).encode()


# Overload


def flood(arguments: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    models = {}
    for source in arguments.models:
        with pinned_server(source) as server:
            models[source] = uvloop.run(flooded(server, arguments))
    return {
        "what": f"{arguments.times:g} times the peak for {arguments.seconds:g} s",
        **about(arguments, argv, "torch", precision=auto_precision()),
        "target_ms": arguments.target_ms,
        "targets": TARGETS,
        "models": models,
    }


async def flooded(server: Server, arguments: argparse.Namespace) -> dict[str, Any]:
    bodies = [body(text) for text in texts(NUM_TEXTS, SEED)]
    there, back = cycle(bodies), cycle(bodies[::-1])  # two loads at once send different texts
    patient = HeaderClient(server.port, X_Request_Timeout_Ms=str(PATIENT_MS))
    calm, hasty = (HeaderClient(server.port, X_Request_Timeout_Ms=str(arguments.target_ms)) for _ in range(2))
    seconds, short, rng = arguments.seconds, max(arguments.short, arguments.seconds / 6), random.Random(SEED)
    await closed_loop(patient, there, CLIENTS, short)  # the server measures its model while it serves
    peak = answered(await closed_loop(patient, there, CLIENTS, 2 * short), PATIENT_MS / 1000) / (2 * short)
    if peak < 1:
        sys.exit(f"overload: {peak:.2f} answers a second: the machine is too slow, or has too much to do")
    async with memory(server) as before_mb:
        before = await open_loop(calm, there, peak / 2, short, rng)
    async with memory(server) as during_mb:
        load = asyncio.create_task(open_loop(hasty, back, arguments.times * peak, seconds, rng))
        await asyncio.sleep(seconds)
        ended = time.perf_counter()
    async with memory(server) as after_mb:
        after = await open_loop(calm, there, peak / 2, short, rng)
    return {
        "peak_per_s": round(peak, 1),
        "before": latency(before),
        "overload": summary(await load, peak, seconds, arguments.target_ms / 1000),
        "recovery_s": recovery_s(after, arguments.target_ms / 1000, ended),
        "after": latency(after) | {"refused": sum(reply.status == 429 for reply in after)},
        "memory_mb_of_parent_and_replica": {"before": before_mb, "overload": during_mb, "after": after_mb},
    }


@asynccontextmanager
async def memory(server: Server) -> AsyncIterator[list[float]]:
    """The largest memory of the parent and of its child inside the block, in MB."""
    most: list[float] = [0.0, 0.0]

    async def watch() -> None:
        while True:
            parts = (server.process, *server.process.children())
            sizes = [round(part.memory_info().rss / 1e6, 1) for part in parts]
            most[:] = map(max, most, sizes)
            await asyncio.sleep(SAMPLE_S)

    watching = asyncio.create_task(watch())
    try:
        yield most
    finally:
        watching.cancel()


def answered(replies: Sequence[Reply], target_s: float) -> int:
    return sum(reply.status == 200 and reply.seconds <= target_s for reply in replies)


def summary(replies: Sequence[Reply], peak: float, seconds: float, target_s: float) -> dict[str, Any]:
    refused = [reply for reply in replies if reply.status == 429]
    accepted = [reply for reply in replies if reply.status not in (0, 429)]
    in_time = answered(replies, target_s)
    return {
        "offered_per_s": round(len(replies) / seconds, 1),
        "goodput_per_s": round(in_time / seconds, 1),
        "goodput_over_peak": round(in_time / seconds / peak, 3),
        "accepted": latency(accepted),
        "in_time_of_accepted": round(in_time / max(1, len(accepted)), 4),
        "refusals": latency(refused),
        "codes": dict(Counter(reply.code or str(reply.status) for reply in replies)),
    }


def latency(replies: Sequence[Reply]) -> dict[str, float]:
    if not replies:
        return {"num": 0}
    p50, p99 = np.percentile([1000 * reply.seconds for reply in replies], (50, 99))
    return {"num": len(replies), "p50_ms": round(float(p50), 1), "p99_ms": round(float(p99), 1)}


def recovery_s(replies: Sequence[Reply], target_s: float, ended: float) -> float:
    """From the end of the overload to the last request that was refused or late."""
    bad = [reply.due for reply in replies if reply.status != 200 or reply.seconds > target_s]
    return round(max(bad, default=ended) - ended, 2)


# Fairness


def fairness(arguments: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    secrets = {name: new_secret() for name in WEIGHTS}
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.toml"
        tables = (
            f'[keys.{name}]\nhash = "{hash_of(secret)}"\nscopes = ["infer"]\nweight = {WEIGHTS[name]}\n'
            for name, secret in secrets.items()
        )
        keys.write_text("".join(tables), encoding="utf-8")
        with pinned_server("mini", "--keys-file", str(keys)) as server:
            found = uvloop.run(shared(server, secrets, arguments))
    return about(arguments, argv, "torch", precision=auto_precision()) | found


async def shared(server: Server, secrets: Mapping[str, str], arguments: argparse.Namespace) -> dict[str, Any]:
    seconds = arguments.seconds
    single = [body(text) for text in texts(NUM_TEXTS, SEED)]

    async def run(live_as: str | None, *bulk: str, priority: str = "interactive") -> dict[str, Any]:
        loads = {}
        for number, name in enumerate(bulk, start=1):
            client = HeaderClient(server.port, secrets[name], X_Request_Priority=priority)
            many = texts(NUM_TEXTS, SEED + number)
            groups = (many[start : start + BULK_ROWS] for start in range(0, NUM_TEXTS, BULK_ROWS))
            bodies = cycle([body(group) for group in groups])
            loads[name] = closed_loop(client, bodies, CLIENTS, seconds)
        if live_as is not None:
            client = HeaderClient(server.port, secrets[live_as])
            loads["live"] = open_loop(client, cycle(single), arguments.rate, seconds, random.Random(SEED))
        replies = dict(zip(loads, await asyncio.gather(*loads.values()), strict=True))
        return {name: _got(name, found, seconds) for name, found in replies.items()}

    await run("live", "bulk")  # the server measures its model while it serves
    return {
        "live alone": await run("live"),
        "keys of their own": await run("live", "bulk"),
        "the same key": await run("bulk", "bulk"),
        "bulk with low priority": await run("live", "bulk", priority="bulk"),
        "weights 1 and 3": await run(None, "bulk", "heavy"),
    }


def _got(name: str, replies: list[Reply], seconds: float) -> dict[str, float]:
    good = [reply for reply in replies if reply.status == 200]
    rows = len(good) * (1 if name == "live" else BULK_ROWS)
    return {"rows_per_s": round(rows / seconds, 1), "not_answered": len(replies) - len(good), **latency(good)}


COMMANDS = {"flood": flood, "fairness": fairness}


def main(argv: Sequence[str]) -> int:
    parser = parser_of("overload", __doc__)
    parser.add_argument("command", nargs="?", choices=COMMANDS, default="flood")
    parser.add_argument("--seconds", type=float, help="of the overload (default: 60), or of each part of fairness (20)")
    parser.add_argument("--short", type=float, default=3.0, help="least seconds of the other phases (default: 3)")
    parser.add_argument("--models", nargs="+", default=["mini"], help="of flood, as in `serve --model` (default: mini)")
    parser.add_argument("--times", type=float, default=10.0, help="the peak (default: 10)")
    parser.add_argument("--target-ms", type=int, default=1000, help="the deadline of every request (default: 1000)")
    parser.add_argument("--rate", type=float, default=5.0, help="live's requests a second (default: 5)")
    arguments = parser.parse_args(argv)
    arguments.seconds = arguments.seconds or {"flood": 60.0, "fairness": 20.0}[arguments.command]
    report = COMMANDS[arguments.command](arguments, argv)
    print(json.dumps(report, ensure_ascii=False, indent=2))
    save(report, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
