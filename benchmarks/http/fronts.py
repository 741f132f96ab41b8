"""Whether several front processes that share one pool would scale: what a request costs a front, and the queue's owner.

    python -m benchmarks.http fronts --json benchmarks/results/fronts.json

Closed loop on loopback as in `front`: one row of 32 tokens a request, an engine that answers at once. `one` is one
service with all clients; `two` are two services side by side with half of the clients each, so two fronts that share
nothing: the most that front processes with one pool could reach. Each turn measures both; CPU times are for each
request.

`owner` is the part that stays in one process whatever the number of fronts, measured alone and without its system
calls: queue, admission, batches, metrics, the frames to and from the worker process, and, for rows that come from a
front process, their frame in and the frame of their outputs back. `feeds_fronts` is the CPU time of a front over that
of the owner: so many fronts keep the owner busy for all of its time.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import count
from statistics import median
from typing import Any

import numpy as np
import uvloop

from benchmarks.common import about, parser_of, save
from benchmarks.http import load
from benchmarks.http.load import LABELS, bodies_of, closed_loop, make_texts, null_server
from service.batching.batch import Batch, BatchResult
from service.batching.batcher import Batcher
from service.batching.latency_model import LatencyModels
from service.domain import Encoding, Output
from service.metrics import Metrics, new_registry
from service.replicas.protocol import ComputeRequest, ComputeResponse, Frames, frame
from service.tasks.classification import CLASSIFY
from service.tasks.classify_query import ClassifyQuery, Text
from service.tasks.labels import LabelList
from tests.support.servers import Server

OWNER_TEXTS = 1024
OUTPUT = Output(np.zeros((len(LABELS), 2), dtype=np.float32))


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    model = load.shipped_model()
    texts = make_texts(model)
    query = ClassifyQuery(tuple(map(Text, texts[:OWNER_TEXTS])), LabelList.of(LABELS))
    rows = CLASSIFY.encode(model, query)
    bodies = bodies_of(texts, 1)
    turns = []
    with ExitStack() as stack:
        servers = [stack.enter_context(null_server()) for _ in range(2)]
        for number in range(arguments.turns):
            turns.append(uvloop.run(turn(servers, bodies, rows, arguments)))
            print(number, " ".join(f"{key} {value:.3f}" for key, value in turns[-1].items()), flush=True)
    report = {
        "what": "whether several front processes that share one pool would scale",
        **about(arguments, argv, "uvicorn", "uvloop"),
        "clients": arguments.clients,
        "turns": [{key: round(value, 4) for key, value in each.items()} for each in turns],
        **summarize(turns),
    }
    print(report["medians"])
    save(report, arguments.json)
    return 0


async def turn(
    servers: Sequence[Server], bodies: Sequence[bytes], rows: Sequence[Encoding], arguments: argparse.Namespace
) -> dict[str, float]:
    owner = await owner_cpu_s(rows, arguments.clients)
    client_cpu = time.process_time()
    one = await closed_loop(servers[0], bodies, arguments.clients, arguments.seconds)
    client_cpu = time.process_time() - client_cpu
    half = arguments.clients // 2
    both = await asyncio.gather(*(closed_loop(each, bodies, half, arguments.seconds) for each in servers))
    rates = [each["requests_per_s"] for each in both]
    two_cpu = sum(each["parent_cpu_ms"] * rate for each, rate in zip(both, rates, strict=True)) / sum(rates)
    return {
        "one_requests_per_s": one["requests_per_s"],
        "two_requests_per_s": sum(rates),
        "one_front_cpu_ms": one["parent_cpu_ms"],
        "two_front_cpu_ms": two_cpu,
        "worker_cpu_ms": one["child_cpu_ms"],
        # the client also sends while it warms up
        "client_cpu_ms": 1000 * client_cpu / (one["requests_per_s"] * (arguments.seconds + load.WARM_UP_S)),
        "owner_cpu_ms": 1000 * owner,
        "two_over_one": sum(rates) / one["requests_per_s"],
        "feeds_fronts": one["parent_cpu_ms"] / (1000 * owner),
    }


class FramingReplica:
    """In place of a worker process: what the parent's end of the pipe does for a batch."""

    name = "cpu"

    def __init__(self) -> None:
        self.foreign_s = 0.0
        """CPU seconds of what a worker process would have done."""
        self._numbers = count()
        self._frames = Frames()

    async def run(self, batch: Batch) -> BatchResult:
        frame(ComputeRequest(next(self._numbers), batch.encodings))
        await asyncio.sleep(0)  # the answer comes in a later iteration of the event loop
        answer = ComputeResponse(0, [OUTPUT] * len(batch.encodings), 0.0)
        [found] = self._frames.feed(self._answers(answer))
        return BatchResult(found.outputs, found.compute_s)

    def _answers(self, answer: ComputeResponse) -> bytes:
        started = time.process_time()
        data = frame(answer)
        self.foreign_s += time.process_time() - started
        return data


async def owner_cpu_s(rows: Sequence[Encoding], clients: int) -> float:
    """CPU seconds of a row."""
    metrics = Metrics(new_registry())
    metrics.declare(["mini"], ["cpu"], ["classify"])
    latency_models = LatencyModels(metrics=metrics, max_batch_tokens=16_384)
    batcher = Batcher(latency_models=latency_models, max_queue_tokens=1_000_000, metrics=metrics)
    replica, frames = FramingReplica(), Frames()
    feeders = [asyncio.create_task(batcher.feed(replica)) for _ in range(2)]
    waiting = iter([frame(ComputeRequest(0, [row])) for row in rows])

    async def answer() -> None:
        for request in waiting:
            [message] = frames.feed(request)
            result = await batcher.submit(message.encodings)
            frame(ComputeResponse(message.number, list(result.outputs), result.compute_s))

    started = time.process_time()
    await asyncio.gather(*(answer() for _ in range(clients)))
    elapsed = time.process_time() - started - replica.foreign_s
    batcher.close()
    await asyncio.gather(*feeders)
    return elapsed / len(rows)


def summarize(turns: Sequence[dict[str, float]]) -> dict[str, Any]:
    values = {key: sorted(each[key] for each in turns) for key in turns[0]}
    return {
        "medians": {key: round(median(found), 3) for key, found in values.items()},
        "least_and_largest": {key: [round(found[0], 3), round(found[-1], 3)] for key, found in values.items()},
    }


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("http fronts", __doc__)
    parser.add_argument("--clients", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one part of a turn (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="(default: %(default)s)")
    return parser.parse_args(argv)
