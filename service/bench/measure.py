"""A whole run: every load of a sweep in turn against one server, and what one must know to repeat it, as a report.

Knows no flags and prints nothing: `progress` hears how far a load is.
"""

from __future__ import annotations

import os
import platform
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from service.bench.corpus import Corpus
from service.bench.load import Load, Run, Tick
from service.bench.report import summarize
from service.bench.requests import endless
from service.bench.server import Batches, models, probe
from service.bench.wire import Client

WIDE = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve", "bf16", "i8mm"}
METHODS = {
    "concurrency": "closed loop: each client sends when its last request is answered; latency from sending",
    "rate": "open loop: Poisson arrivals at a fixed rate; latency from the moment a request was meant to leave",
}

Progress = Callable[[Load, float], AbstractContextManager[Tick]]
"""Opened for each load with the seconds that it takes."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send, and how. `mix` is tasks and their weights; loads are measured in order."""

    loads: tuple[Load, ...]
    mix: dict[str, float]
    duration_s: float = 30.0
    warm_up_s: float = 3.0
    num_inputs: int = 1
    model: str | None = None
    timeout_s: float = 30.0
    seed: int = 1


async def measure(client: Client, plan: Plan, corpus: Corpus, progress: Progress) -> dict[str, Any]:
    """The run as one JSON-ready report. Raises OSError when the server cannot be reached, ValueError when it cannot do
    what is asked."""
    about = await models(client)
    able = await probe(client, corpus, plan.mix, plan.model)
    points = [await _point(client, plan, load, corpus, able.mix, progress) for load in plan.loads]
    asked = {"mix": able.mix, "left_out": able.left_out, "answered_by": sorted(able.models)}
    return setting(plan, corpus) | asked | {"models": about, "points": points}


async def _point(
    client: Client, plan: Plan, load: Load, corpus: Corpus, mix: dict[str, float], progress: Progress
) -> dict[str, Any]:
    requests = endless(corpus, mix, plan.num_inputs, plan.model, plan.seed)
    batches = Batches(client)
    with progress(load, plan.duration_s) as tick:
        run = Run(client, requests, plan.timeout_s, tick)
        await run.measure(load, plan.warm_up_s, plan.duration_s, batches, random.Random(plan.seed))
    return {
        "load": load.name,
        load.kind: load.level,
        "results": summarize(run.samples, plan.duration_s),
        "batches": batches.per_batch(),
    }


def setting(plan: Plan, corpus: Corpus) -> dict[str, Any]:
    """What one must know to repeat the run."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "method": METHODS[plan.loads[0].kind],
        "duration_s": plan.duration_s,
        "warm_up_s": plan.warm_up_s,
        "inputs_per_request": plan.num_inputs,
        "seed": plan.seed,
        "corpus": {"about": corpus.about, "texts": len(corpus.texts), "readings": len(corpus.readings)},
        "machine": machine(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "uvloop", "numpy")},
    }


def machine() -> dict[str, Any]:
    """The class of this machine, not its name."""
    cores = len(os.sched_getaffinity(0))
    return {"platform": f"{platform.system()} {platform.machine()}", "cores": cores, "arithmetic": arithmetic()}


def arithmetic(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The wide instructions that decide how fast a CPU multiplies."""
    words = set(cpuinfo.read_text(encoding="utf-8", errors="replace").split()) if cpuinfo.is_file() else set()
    return sorted(words & WIDE)
