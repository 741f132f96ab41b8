"""What the service costs around its engine, and where its one Python process saturates.

    python -m benchmarks.http front --json benchmarks/results/front.json

Closed loop on loopback, kept-alive connections, /v1/classify with two labels, every input a distinct row of 32 tokens.
throughput: the engine answers at once; medians over the turns; parent_cpu_ms and child_cpu_ms are CPU time for each
request. overhead: mini is computed with one thread for one client, in turns with bare Engine.run calls of the same rows
in the client's process; over_bare_ms is the difference of the medians, over_compute_ms the median round trip minus the
mean compute time in the server's metrics. --other measures a second checkout, in turns with this one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import uvloop

from benchmarks.common import ROOT, about, auto_precision, parser_of, save
from benchmarks.http import load
from benchmarks.http.load import LABELS, PATH, bodies_of, in_turns, make_texts, null_server
from service.tasks.classification import CLASSIFY
from service.tasks.classify_query import ClassifyQuery, Text
from service.tasks.labels import LabelList
from service.tools.bench.client import Client
from service.tools.bench.measure import ServerTotals
from tests.support.servers import serving

LOADS = tuple((inputs, clients) for inputs in (1, 32) for clients in (1, 8, 32, 128))
PACKAGES = ("fastapi", "uvicorn", "uvloop", "pydantic", "tokenizers", "torch")
OVERHEAD_ROWS = 32
"""Requests, then bare runs, in one turn."""


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    folders = {"this": ROOT, **({"other": arguments.other} if arguments.other else {})}
    report = {
        "what": "what the service costs around its engine",
        **about(arguments, argv, *PACKAGES),
        "precision_of_overhead": auto_precision(),
        "turns": arguments.turns,
        "seconds_of_a_turn": arguments.seconds,
        "throughput": throughput(folders, arguments),
        "overhead": uvloop.run(overhead(10 * arguments.turns)),
    }
    print(" ".join(f"{key} {value}" for key, value in report["overhead"].items()))
    save(report, arguments.json)
    return 0


def throughput(folders: dict[str, Path], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One entry for each load and checkout; the checkouts take turns."""
    texts, entries = make_texts(load.shipped_model()), []
    with ExitStack() as stack:
        servers = {name: stack.enter_context(null_server(folder=folder)) for name, folder in folders.items()}
        for inputs, clients in LOADS[: arguments.loads]:
            for name, found in in_turns(servers, bodies_of(texts, inputs), clients, arguments).items():
                entries.append({"service": name, "inputs": inputs, "clients": clients, **found})
                print(" ".join(f"{key} {value}" for key, value in entries[-1].items()), flush=True)
    return entries


async def overhead(turns: int) -> dict[str, Any]:
    import torch

    from service.engine.engine import Engine

    torch.set_num_threads(1)
    model = load.shipped_model()
    engine, texts = Engine.load(load.shipped_checkpoint()), make_texts(model)[:OVERHEAD_ROWS]
    engine.warm_up()
    query = ClassifyQuery(tuple(map(Text, texts)), LabelList.of(LABELS))
    rows, bodies = CLASSIFY.encode(model, query), bodies_of(texts, 1)
    bare: list[float] = []
    trips: list[float] = []
    with serving("--model", "mini", "--threads", "1") as server:
        client = Client("127.0.0.1", server.port)
        batches = ServerTotals(client)
        for turn in range(turns + 1):
            if turn == 1:  # the first one warms up
                bare.clear()
                trips.clear()
                await batches.begin()
            for body in bodies:
                started = perf_counter()
                reply = await client.send("POST", PATH, body)
                trips.append(perf_counter() - started)
                assert reply.status == 200, reply.body
            for row in rows:
                started = perf_counter()
                engine.run([row])
                bare.append(perf_counter() - started)
        await batches.end()
        client.close()
    computed = batches.per_batch()
    assert computed is not None, "the server has computed"
    trip, once = median(trips), median(bare)
    times = {
        "round_trip_p50_ms": trip,
        "compute_mean_ms": computed["mean_compute_s"],
        "over_compute_ms": trip - computed["mean_compute_s"],
        "bare_p50_ms": once,
        "over_bare_ms": trip - once,
    }
    return {"requests": len(trips), **{key: round(1000 * seconds, 3) for key, seconds in times.items()}}


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("http front", __doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one turn of one load (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="of each load (default: %(default)s)")
    parser.add_argument("--loads", type=int, default=len(LOADS), help="only the first of the loads")
    parser.add_argument("--other", type=Path, metavar="FOLDER", help="a second checkout to compare with")
    return parser.parse_args(argv)
