"""A bench run: measures every load of a sweep against one server and returns the report."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from service.tools.bench.client import Client, Response
from service.tools.bench.load import Load, Request, Run, Tick, mixed_requests, requests_of
from service.tools.bench.provenance import machine, redact_path
from service.tools.bench.report import summarize
from service.tools.bench.server_metrics import SECONDS, not_computed, per_batch, sum_totals
from service.tools.bench.texts import Corpus

METRICS_TIMEOUT_S = 10.0


@dataclass(slots=True)
class Supported:
    """The part of a mix that this server can do with these texts; `left_out` says why not the rest."""

    mix: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    models: set[str] = field(default_factory=set)
    """The models that answered."""


async def probe(client: Client, corpus: Corpus, mix: Mapping[str, float], model: str | None) -> Supported:
    """Sends one request of each task. ValueError if none can be done, OSError if the server cannot be reached."""
    supported = Supported()
    for task, weight in mix.items():
        if task == "mrc" and not corpus.readings:
            supported.left_out[task] = "the texts contain no reading comprehension (as in C3)"
            continue
        request = next(requests_of(corpus, task, 1, model, random.Random(0)))
        response = await client.send("POST", request.path, request.body)
        if response.status == 200:
            supported.mix[task] = weight
            supported.models.add(json.loads(response.body).get("model", ""))
        else:
            supported.left_out[task] = _describe_refusal(response)
    if not supported.mix:
        reasons = "; ".join(f"{task}: {reason}" for task, reason in supported.left_out.items())
        raise ValueError(f"the server can do none of the tasks of --mix: {reasons}")
    return supported


def _describe_refusal(response: Response) -> str:
    """The status of a response, with the detail of its problem document if it has one."""
    try:
        detail = json.loads(response.body)["detail"]
    except (ValueError, TypeError, KeyError):
        detail = ""
    return f"the server answers {response.status}" + (f": {detail}" if detail else "")


async def fetch_models(client: Client) -> dict[str, Any]:
    """Raises OSError if the server cannot be reached, ValueError if it is not an Erlangshen Service."""
    response = await client.send("GET", "/v1/models")
    if response.status != 200:
        raise ValueError(f"GET /v1/models answers {response.status}: is this an Erlangshen Service?")
    reply: dict[str, Any] = json.loads(response.body)
    return reply


class ServerTotals:
    """The server's own totals at the start and at the end of a measurement."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._before: dict[str, float] = {}
        self._after: dict[str, float] = {}

    async def begin(self) -> None:
        self._before = await self._read()

    async def end(self) -> None:
        self._after = await self._read()

    def per_batch(self) -> dict[str, float] | None:
        return per_batch(self._before, self._after)

    def not_computed(self) -> dict[str, float] | None:
        return not_computed(self._before, self._after)

    async def _read(self) -> dict[str, float]:
        """{} if the server shows no metrics, or not in time: the load is measured without them."""
        try:
            async with asyncio.timeout(METRICS_TIMEOUT_S):
                response = await self._client.send("GET", "/metrics")
            if response.status != 200:
                return {}
            return sum_totals(response.body.decode()) | {SECONDS: time.perf_counter()}
        except (OSError, ValueError):  # a TimeoutError is an OSError
            return {}


METHODS = {
    "concurrency": "closed loop: each client sends its next request when the last one is answered; rates count the "
    "requests that ended in the window, latencies those sent in it",
    "rate": "open loop: Poisson arrivals at a fixed rate; rates count the requests that ended in the window, latencies "
    "those scheduled in it, from the scheduled moment",
}

OpenProgress = Callable[[Load, float], AbstractContextManager[Tick]]
"""Called with each load and its duration in seconds."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The requests and loads of a run. `mix` maps tasks to weights; the loads are measured in order."""

    loads: tuple[Load, ...]
    mix: dict[str, float]
    duration_s: float = 30.0
    warm_up_s: float = 3.0
    num_inputs: int = 1
    model: str | None = None
    timeout_s: float = 30.0
    seed: int = 1


async def measure(client: Client, plan: Plan, corpus: Corpus, progress: OpenProgress) -> dict[str, Any]:
    """Runs the plan and returns a JSON-ready report.

    Raises:
        OSError: the server cannot be reached.
        ValueError: it is not an Erlangshen Service, or can do none of the tasks.
    """
    about = await fetch_models(client)
    supported = await probe(client, corpus, plan.mix, plan.model)
    requests = mixed_requests(corpus, supported.mix, plan.num_inputs, plan.model, plan.seed)
    points = [await _point(client, plan, load, requests, progress) for load in plan.loads]
    probed = {"mix": supported.mix, "left_out": supported.left_out, "answered_by": sorted(supported.models)}
    return describe_setting(plan, corpus) | probed | {"models": _redact_sources(about), "points": points}


def _redact_sources(about: dict[str, Any]) -> dict[str, Any]:
    """The answer of /v1/models without the paths of the models' files."""
    return about | {"models": [model | {"source": redact_path(model["source"])} for model in about["models"]]}


async def _point(
    client: Client, plan: Plan, load: Load, requests: Iterator[Request], progress: OpenProgress
) -> dict[str, Any]:
    """`requests` is shared by the points of a sweep: each continues with the next texts."""
    totals = ServerTotals(client)
    with progress(load, plan.duration_s) as tick:
        run = Run(client, requests, plan.timeout_s, tick)
        await run.measure(load, plan.warm_up_s, plan.duration_s, totals, random.Random(plan.seed))
    return {
        "load": load.name,
        load.kind: load.level,
        "results": summarize(run.samples, run.window),
        "batches": totals.per_batch(),
        "not_computed": totals.not_computed(),
    }


def describe_setting(plan: Plan, corpus: Corpus) -> dict[str, Any]:
    """Everything needed to repeat the run."""
    return {
        "method": METHODS[plan.loads[0].kind],
        "duration_s": plan.duration_s,
        "warm_up_s": plan.warm_up_s,
        "inputs_per_request": plan.num_inputs,
        "seed": plan.seed,
        "corpus": {"about": corpus.about, "texts": len(corpus.texts), "readings": len(corpus.readings)},
        "machine": machine(),
    }
