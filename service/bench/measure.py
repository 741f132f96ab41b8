"""A whole run: every load of a sweep in turn against one server, and what one must know to repeat it, as a report.

Knows no flags and prints nothing: `progress` hears how far a load is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from service.bench.corpus import Corpus
from service.bench.load import Load, Run, Tick
from service.bench.origin import machine, told
from service.bench.report import summarize
from service.bench.requests import Request, endless
from service.bench.server import Batches, models, probe
from service.bench.wire import Client

METHODS = {
    "concurrency": "closed loop: each client sends when its last request is answered; rates of what ended in the "
    "window, latency from sending of what left in it",
    "rate": "open loop: Poisson arrivals at a fixed rate; rates of what ended in the window, latency from the moment a "
    "request was meant to leave, of what was meant to leave in it",
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
    requests = endless(corpus, able.mix, plan.num_inputs, plan.model, plan.seed)
    points = [await _point(client, plan, load, requests, progress) for load in plan.loads]
    asked = {"mix": able.mix, "left_out": able.left_out, "answered_by": sorted(able.models)}
    return setting(plan, corpus) | asked | {"models": _told(about), "points": points}


def _told(about: dict[str, Any]) -> dict[str, Any]:
    """What the server says of its models, without where they lie."""
    return about | {"models": [model | {"source": told(model["source"])} for model in about["models"]]}


async def _point(
    client: Client, plan: Plan, load: Load, requests: Iterator[Request], progress: Progress
) -> dict[str, Any]:
    """The next point of a sweep goes on in the texts where the last one stopped."""
    batches = Batches(client)
    with progress(load, plan.duration_s) as tick:
        run = Run(client, requests, plan.timeout_s, tick)
        await run.measure(load, plan.warm_up_s, plan.duration_s, batches, random.Random(plan.seed))
    return {
        "load": load.name,
        load.kind: load.level,
        "results": summarize(run.samples, run.window),
        "batches": batches.per_batch(),
        "not_computed": batches.not_computed(),
    }


def setting(plan: Plan, corpus: Corpus) -> dict[str, Any]:
    """What one must know to repeat the run."""
    return {
        "method": METHODS[plan.loads[0].kind],
        "duration_s": plan.duration_s,
        "warm_up_s": plan.warm_up_s,
        "inputs_per_request": plan.num_inputs,
        "seed": plan.seed,
        "corpus": {"about": corpus.about, "texts": len(corpus.texts), "readings": len(corpus.readings)},
        "machine": machine(),
    }
