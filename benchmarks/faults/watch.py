"""What a server takes while it runs: memory, descriptors, threads, tasks, children; and whether any of it grows.

Knows processes, no requests.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.faults.orders import TASKS
from benchmarks.faults.running import Instance

EVERY_S = 5.0
SETTLED = 0.2
"""Of a run: what was taken before is that of the start."""

GROWN_BYTES = 0.05
"""Of the memory: less is what an allocator keeps."""

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Sample:
    """Bytes and numbers of the parent process, but for the last two."""

    at_s: float
    rss_bytes: int
    descriptors: int
    threads: int
    tasks: int
    children: int
    children_rss_bytes: int


async def watch(server: Instance, orders: Path, is_over: asyncio.Event, every_s: float = EVERY_S) -> list[Sample]:
    """Looks every so often until it is over."""
    samples = []
    started = time.monotonic()
    while not is_over.is_set():
        samples.append(await asyncio.to_thread(_sample, server, orders, time.monotonic() - started))
        try:
            await asyncio.wait_for(is_over.wait(), every_s)
        except TimeoutError:
            continue
    return samples


def _sample(server: Instance, orders: Path, at_s: float) -> Sample:
    process = server.process
    replicas = server.replicas()
    return Sample(
        at_s=round(at_s, 1),
        rss_bytes=process.memory_info().rss,
        descriptors=process.num_fds(),
        threads=process.num_threads(),
        tasks=int((orders / TASKS).read_text() or 0),
        children=len(replicas),
        children_rss_bytes=sum(_rss(replica) for replica in replicas),
    )


def _rss(process: psutil.Process) -> int:
    """It may be ending."""
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def growth(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Of each number its value early in the settled part of the run and late in it, each over a quarter of that.

    Memory is told by its median; the others by their lower quartile, for a request in flight takes some of each, and a
    replica that is being replaced gives some back.
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
    """Bytes per hour that the parent's memory grows in the settled part, by least squares."""
    settled = samples[int(len(samples) * SETTLED) :]
    times, sizes = ([getattr(each, name) for each in settled] for name in ("at_s", "rss_bytes"))
    return float(np.polyfit(times, sizes, 1)[0]) * HOUR_S if len(settled) > 1 else 0.0


def leaks(samples: Sequence[Sample]) -> list[str]:
    """What has grown. The children's memory is left out: they are replaced all the time."""
    found = growth(samples)
    memory = found.pop("rss_bytes")
    del found["children_rss_bytes"]
    grown = [name for name, of in found.items() if of["late"] > of["early"]]
    return ["rss_bytes", *grown] if memory["late"] > memory["early"] * (1 + GROWN_BYTES) else grown


def told(samples: Sequence[Sample]) -> dict[str, Any]:
    """For the report."""
    return {
        "samples": len(samples),
        "rss_slope_mb_per_hour": round(rss_slope(samples) / 1e6, 2),
        "growth": growth(samples),
        "leaks": leaks(samples),
        "first": asdict(samples[0]),
        "last": asdict(samples[-1]),
    }
