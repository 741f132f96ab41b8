"""Loads a real server for a long time, injects a fault every minute, and looks for leaks and lost requests.

    python -m benchmarks.faults soak --minutes 15 --json benchmarks/results/soak.json

Clients that compare answers send all tasks without a pause; careless clients send invalid, hasty and bulk requests, or
disconnect. Memory, descriptors, threads, asyncio tasks and children are sampled; the first quarter of the settled part
of the run is compared with its last. Exits with 1 when a request was lost, an answer was unexpected, or something
grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil

from benchmarks.common import about, auto_precision, parser_of, save
from benchmarks.faults.faults import FAULTS, Target, possible, target
from benchmarks.faults.inject import WRONG_UNTIL_SEEN, exit_on_sigterm, recovered_s, totals
from tests.support.clients import Clients, Exchange, Question, counted, questions
from tests.support.engines import TASKS
from tests.support.servers import until

END_S = 60.0
IDLE = ("queue_jobs", "queue_tokens", "batches_in_flight", "requests_in_progress")
"""Gauges that are zero once nothing is sent."""

EVERY_S = 5.0
SETTLED = 0.2
"""The share of the run that counts as its start and is left out."""

GROWN_BYTES = 0.05
"""Relative growth of memory that an allocator may keep."""

PAUSE_S = 0.2
REPLY_S = 120.0
BUSY = {"429", "503", "504"}
"""Statuses that any request may get under overload."""


def _embed(**fields: object) -> bytes:
    return json.dumps({"inputs": "今天天气怎么样？", **fields}).encode()


MANY = [f"第{number}篇文章，写得很长。" * 4 for number in range(32)]
REQUESTS: Mapping[str, tuple[str, bytes, set[str]]] = {
    "invalid JSON": ("/v1/embed", b'{"inputs": ', {"400", "503"}),
    "unknown field": ("/v1/embed", _embed(colour="red"), {"422", "503"}),
    "unknown model": ("/v1/embed", _embed(model="unknown"), {"404", "503"}),
    "unknown path": ("/v1/nothing", _embed(), {"404"}),
    "deadline of 1 ms": ("/v1/embed", _embed(timeout_ms=1), {"200", *BUSY}),
    "32 texts": ("/v1/embed", _embed(inputs=MANY, priority="bulk"), {"200", *BUSY}),
}
"""Path, body and the statuses that are right."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Of the parent process, except the last two."""

    at_s: float
    rss_bytes: int
    descriptors: int
    threads: int
    tasks: int
    children: int
    children_rss_bytes: int


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    exit_on_sigterm()
    report = {
        "what": "a long run under mixed load, with a fault every so often",
        **about(arguments, argv, "torch", "uvicorn", precision=auto_precision()),
        **{name: getattr(arguments, name) for name in ("model", "minutes", "clients")},
        "seconds_between_faults": arguments.every,
        **asyncio.run(soak(arguments)),
    }
    print(json.dumps(report, ensure_ascii=False, indent=2))
    save(report, arguments.json)
    return 0 if report["is_sound"] else 1


async def soak(arguments: argparse.Namespace) -> dict[str, Any]:
    flags = ("--model", arguments.model, "--threads", "1", "--log-format", "json", "--log-level", "warning")
    asked, is_over = questions(arguments.questions), asyncio.Event()
    with tempfile.TemporaryDirectory() as folder:
        async with target(Path(folder), flags + 2 * ("--devices", "cpu"), asked, arguments.clients) as found:
            await found.clients.learn()
            async with found.clients.load():
                sending = asyncio.create_task(send_carelessly(found.server.url, is_over))
                watching = asyncio.create_task(watch(found, is_over))
                try:
                    faults = await _inject(found, 60 * arguments.minutes, arguments.every)
                finally:
                    is_over.set()
                careless, samples = await sending, await watching
            await until(lambda: not any(found.server.metric(name) for name in IDLE), END_S)
            by_server = await asyncio.to_thread(totals, found.server)
    report = summary(found.clients.taken(), careless, samples)
    return report | {"counted_by_the_server": by_server, "faults": faults}


def summary(exchanges: Sequence[Exchange], careless: Sequence[Exchange], samples: Sequence[Sample]) -> dict[str, Any]:
    lost, grown = sum(each.is_lost for each in exchanges), leaks(samples)
    answers = Counter(f"{each.task}: {each.outcome}" for each in careless)
    wrong = (each for each in careless if each.outcome.partition(" ")[0] not in REQUESTS[each.task][2])
    unexpected = Counter(f"{each.task}: {each.outcome}" for each in wrong)
    return {
        "asked": len(exchanges),
        "outcomes": counted(exchanges),
        "lost": lost,
        "careless": dict(sorted(answers.items())),
        "unexpected": dict(unexpected),
        "taken": {
            "samples": len(samples),
            "rss_slope_mb_per_hour": round(rss_slope(samples) / 1e6, 2),
            "growth": growth(samples),
            "leaks": grown,
            "first": asdict(samples[0]),
            "last": asdict(samples[-1]),
        },
        "is_sound": not (lost or unexpected or grown),
    }


async def _inject(target: Target, seconds: float, every_s: float) -> list[dict[str, Any]]:
    """One fault after another, each awaited; none in the last `every_s` of the run."""
    started, injected = time.monotonic(), []
    in_turn = cycle([fault for fault in possible(FAULTS, target.group) if fault.name not in WRONG_UNTIL_SEEN])
    for number, fault in enumerate(in_turn, start=1):
        due = started + number * every_s
        if due > started + seconds - every_s:
            break
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        before, at_s = await asyncio.to_thread(totals, target.server), time.monotonic()
        await fault.inject(target)
        seconds_lost = await recovered_s(fault, target.server, before) - at_s
        injected.append({"at_s": round(at_s - started), "fault": fault.name, "recovery_s": round(seconds_lost, 2)})
        print(json.dumps(injected[-1]), file=sys.stderr)
    await asyncio.sleep(max(0.0, started + seconds - time.monotonic()))
    return injected


async def send_carelessly(url: str, is_over: asyncio.Event) -> list[Exchange]:
    """Invalid, hasty and bulk requests, and disconnects: one at a time, of a random kind."""
    rng = random.Random(1)
    async with Clients(url, (), 1, REPLY_S) as clients:
        while not is_over.is_set():
            name = rng.choice((*REQUESTS, "disconnect"))
            if name in REQUESTS:
                await clients.ask(Question(name, *REQUESTS[name][:2]))
            else:
                await disconnect(url)
            await asyncio.sleep(PAUSE_S)
        return clients.taken()


async def disconnect(url: str) -> None:
    """Sends a whole request and closes the connection without reading."""
    address, body = urlsplit(url), _embed(inputs="好" * 200)
    _, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(b"POST /v1/embed HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    await writer.drain()
    writer.close()


async def watch(target: Target, is_over: asyncio.Event) -> list[Sample]:
    samples = []
    started = time.monotonic()
    while not is_over.is_set():
        samples.append(await asyncio.to_thread(_sample, target, time.monotonic() - started))
        with suppress(TimeoutError):
            await asyncio.wait_for(is_over.wait(), EVERY_S)
    return samples


def _sample(target: Target, at_s: float) -> Sample:
    process, replicas = target.server.process, target.server.replicas()
    return Sample(
        at_s=round(at_s, 1),
        rss_bytes=process.memory_info().rss,
        descriptors=process.num_fds(),
        threads=process.num_threads(),
        tasks=int((target.orders / TASKS).read_text() or 0),
        children=len(replicas),
        children_rss_bytes=sum(_rss(replica) for replica in replicas),
    )


def _rss(process: psutil.Process) -> int:
    """0 for a process that has just exited."""
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def growth(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Each number early in the settled part and late in it, each over a quarter of that part.

    Memory by its median; the others by their lower quartile, as a request in flight takes some of each and a replica
    that is being replaced returns some.
    """
    settled = samples[int(len(samples) * SETTLED) :]
    quarter = max(1, len(settled) // 4)
    found = {}
    for name in (field.name for field in fields(Sample) if field.name != "at_s"):
        of: Callable[[Sequence[int]], float] = statistics.median if name.endswith("bytes") else _lower_quartile
        early, late = ([getattr(each, name) for each in part] for part in (settled[:quarter], settled[-quarter:]))
        found[name] = {"early": of(early), "late": of(late)}
    return found


def _lower_quartile(values: Sequence[int]) -> int:
    return sorted(values)[len(values) // 4]


def rss_slope(samples: Sequence[Sample]) -> float:
    """Growth of the parent's memory in bytes per hour over the settled part, by least squares."""
    settled = samples[int(len(samples) * SETTLED) :]
    times, sizes = ([getattr(each, name) for each in settled] for name in ("at_s", "rss_bytes"))
    return float(np.polyfit(times, sizes, 1)[0]) * 3600 if len(settled) > 1 else 0.0


def leaks(samples: Sequence[Sample]) -> list[str]:
    """The names of what has grown. The children's memory is left out: they are replaced all the time."""
    found = growth(samples)
    memory = found.pop("rss_bytes")
    del found["children_rss_bytes"]
    grown = [name for name, of in found.items() if of["late"] > of["early"]]
    return ["rss_bytes", *grown] if memory["late"] > memory["early"] * (1 + GROWN_BYTES) else grown


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("faults soak", __doc__)
    parser.add_argument("--model", default="mini", help="(default: mini)")
    parser.add_argument("--clients", type=int, default=6, help="(default: %(default)s)")
    parser.add_argument("--questions", type=int, default=100, help="of each task (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=30.0, help="(default: 30)")
    parser.add_argument("--every", type=float, default=60.0, help="seconds from fault to fault (default: 60)")
    return parser.parse_args(argv)
