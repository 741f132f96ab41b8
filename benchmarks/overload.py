"""Ten times what the server can answer, for a minute: what it still answers, how soon, and how soon it recovers.

    python -m benchmarks.overload --json benchmarks/results/overload.json     # about two minutes for each of two models
    python -m benchmarks.overload --seconds 10 --models mini

Starts the real server on each model, one compute thread, and loads it from this process. Every request is one text of
its own (lognormal lengths, median 31 characters) and, after the peak, carries the target as its deadline. In turn:

    peak      closed loop, 32 clients: what it can answer
    before    open loop at half of that
    overload  open loop at ten times that
    after     open loop at half again, at once

The replica computes on a core of its own, all else shares the others: so the client takes nothing from computing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.about import about, auto_precision, save
from benchmarks.loaded_server import Server, message, parser_of, serving, source_of, texts
from benchmarks.open_loop import NO_ANSWER, Reply, Sender
from service.tools.bench.load import NEWS

CLIENTS = 32
NUM_TEXTS = 30_000
"""Each is sent again after some seconds at the earliest: two equal rows in flight would be computed once."""

SEED = 1
PATIENT_MS = 60_000
TARGETS = {
    "goodput_over_peak": "at least 0.9",
    "in_time_of_accepted": "at least 0.99",
    "recovery_s": "at most 2",
    "no_answer": "0",
    "refused_without_retry_after": "0",
}


def main() -> int:
    arguments = _parse()
    report: dict[str, Any] = _about(arguments)
    report["models"] = {}
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder, serving(source_of(name, Path(folder)), arguments.port) as server:
            report["models"][name] = uvloop.run(measure(server, name, arguments))
        print(name, json.dumps(report["models"][name], indent=2))
    save(report, arguments.json)
    return 0


def messages_of(name: str, deadline_ms: int, deadline_in: str) -> list[bytes]:
    """Zero-shot with ten labels for the model that ships; the other one has labels of its own."""
    extra: dict[str, Any] = {"labels": NEWS} if name == "mini" else {}
    if deadline_in == "header":
        return [message({"inputs": text, **extra}, X_Request_Timeout_Ms=str(deadline_ms)) for text in _texts()]
    return [message({"inputs": text, "timeout_ms": deadline_ms, **extra}) for text in _texts()]


def _texts() -> list[str]:
    return texts(NUM_TEXTS, SEED)


async def measure(server: Server, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    watching = asyncio.create_task(server.watch())
    patient = messages_of(name, PATIENT_MS, arguments.deadline_in)
    hasty = messages_of(name, arguments.target_ms, arguments.deadline_in)
    # Not to end at the same text each time; two loads at once have connections of their own.
    closed, calm, flood = Sender(server.port, cycle(patient)), Sender(server.port, cycle(hasty)), cycle(hasty[::-1])
    short, rng = max(3.0, arguments.seconds / 6), random.Random(SEED)
    await closed.closed(CLIENTS, short)  # the server measures its model while it serves
    peak = _answered(await closed.closed(CLIENTS, 2 * short)) / (2 * short)
    if peak < 1:
        sys.exit(f"overload: {peak:.2f} answers a second: the machine is too slow, or has too much to do")
    began = time.perf_counter()
    before = await calm.open(peak / 2, short, rng)
    starts = time.perf_counter()
    load = asyncio.create_task(Sender(server.port, flood).open(arguments.times * peak, arguments.seconds, rng))
    await asyncio.sleep(arguments.seconds)
    ends = time.perf_counter()
    after = await calm.open(peak / 2, short, rng)
    during = await load
    watching.cancel()
    times = (began, starts, ends, time.perf_counter())
    return {
        "peak_per_s": round(peak, 1),
        "before": _latency(before),
        "overload": _overload(during, peak, arguments),
        "recovery_s": recovery_s(after, arguments.target_ms / 1000, ends),
        "after": _latency(after) | {"refused": sum(reply.status == 429 for reply in after)},
        "memory_mb_of_parent_and_replica": {
            part: server.most_mb(*span)
            for part, span in zip(("before", "overload", "after"), pairwise(times), strict=True)
        },
    }


def _answered(replies: Sequence[Reply], target_s: float = PATIENT_MS / 1000) -> int:
    return sum(reply.status == 200 and reply.seconds <= target_s for reply in replies)


def _overload(replies: Sequence[Reply], peak: float, arguments: argparse.Namespace) -> dict[str, Any]:
    refused = [reply for reply in replies if reply.status == 429]
    accepted = [reply for reply in replies if reply.status not in (429, NO_ANSWER)]
    in_time = _answered(replies, arguments.target_ms / 1000)
    goodput = in_time / arguments.seconds
    return {
        "offered_per_s": round(len(replies) / arguments.seconds, 1),
        "goodput_per_s": round(goodput, 1),
        "goodput_over_peak": round(goodput / peak, 3),
        "accepted": _latency(accepted),
        "in_time_of_accepted": round(in_time / max(1, len(accepted)), 4),
        "refused": len(refused),
        "refusals": _latency(refused),
        "refused_without_retry_after": sum(not reply.has_retry_after for reply in refused),
        "no_answer": sum(reply.status == NO_ANSWER for reply in replies),
        "codes": dict(Counter(reply.code or str(reply.status) for reply in replies)),
    }


def _latency(replies: Sequence[Reply]) -> dict[str, float]:
    if not replies:
        return {"num": 0}
    p50, p99 = np.percentile([1000 * reply.seconds for reply in replies], (50, 99))
    return {"num": len(replies), "p50_ms": round(float(p50), 1), "p99_ms": round(float(p99), 1)}


def recovery_s(replies: Sequence[Reply], target_s: float, ended: float) -> float:
    """From the end of the overload to the last request that was refused or late."""
    bad = [reply.due for reply in replies if reply.status != 200 or reply.seconds > target_s]
    return round(max(bad, default=ended) - ended, 2)


def _about(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "what": f"{arguments.times:g} times the peak for {arguments.seconds:g} s",
        **about("overload", __doc__, arguments.machine, "torch", precision=auto_precision()),
        "target_ms": arguments.target_ms,
        "targets": TARGETS,
    }


def _parse() -> argparse.Namespace:
    parser = parser_of("overload", __doc__)
    parser.add_argument("--models", nargs="+", choices=("mini", "small"), default=["mini", "small"])
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload; the other phases are shorter")
    parser.add_argument("--times", type=float, default=10.0, help="the peak")
    parser.add_argument("--target-ms", type=int, default=1000, help="the deadline that every request carries")
    parser.add_argument("--deadline-in", choices=("header", "body"), default="header", help="where it carries it")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
