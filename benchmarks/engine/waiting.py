"""Measures how long torch's threads should wait busily for the next step of a layer (GOMP_SPINCOUNT; 0: not at all).

    python -m benchmarks.engine waiting --model small --json benchmarks/results/waiting.json

One process for each number of turns, with the encoder computed by torch in float32; all compute the same rows in turn,
one at a time and in batches of 16, in another order in every round. Ratios are of one round, over the first of --turns;
their median and interval are those of the benchmark of the runtimes. What a thread takes from the cores while it waits
for the next batch, which it may never get, is in the CPU milliseconds of a row.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

import torch

from benchmarks.common import about, parser_of, save
from benchmarks.engine.models import LENGTHS
from benchmarks.engine.runtimes import BATCH_ROWS, RANDOM, Process, find_checkpoint, interval
from benchmarks.peers.exported import encode
from benchmarks.peers.rounds import make_texts
from service.engine.engine import Engine
from service.host import thread_variables

Key = tuple[int, int]
"""Turns, and rows of a batch."""


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    if arguments.answer:
        _answer(arguments)
        return 0
    with ExitStack() as stack:
        processes = {turns: stack.enter_context(_process(turns, arguments)) for turns in arguments.turns}
        rounds = list(_race({turns: Process(each, f"{turns} turns") for turns, each in processes.items()}, arguments))
    document = {
        "what": "milliseconds of a row by torch in float32, by the turns for which its threads wait busily",
        **about(arguments, argv, "torch"),
        **{name: getattr(arguments, name) for name in ("model", "threads", "rounds", "rows")},
        "results": [_summary(key, rounds, arguments) for key in rounds[0]],
    }
    save(document, arguments.json)
    for each in document["results"]:
        print(json.dumps(each))
    return 0


def _process(turns: int, arguments: argparse.Namespace) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.engine", "waiting", "--answer", "--model", arguments.model]
    command += ["--threads", str(arguments.threads), "--rows", str(arguments.rows)]
    variables = thread_variables(arguments.threads) | {"GOMP_SPINCOUNT": str(turns)}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables)


def _answer(arguments: argparse.Namespace) -> None:
    """Computes all rows for each line of stdin, which is the number of rows of a batch."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(arguments.threads)
    checkpoint, _ = find_checkpoint(arguments.model)
    rows = encode(checkpoint, make_texts(LENGTHS, arguments.rows, seed=1))
    engine = Engine.load(checkpoint, precision="float32", runtime="torch")
    engine.warm_up()
    print(json.dumps({"loaded": True}), file=answers)
    for line in sys.stdin:
        size = int(line)
        clock, cpu = time.perf_counter(), time.process_time()
        for start in range(0, len(rows), size):
            engine.run(rows[start : start + size])
        print(json.dumps({"clock": time.perf_counter() - clock, "cpu": time.process_time() - cpu}), file=answers)


def _race(processes: Mapping[int, Process], arguments: argparse.Namespace) -> Iterator[dict[Key, dict[str, float]]]:
    """A first round warms all up and does not count."""
    for process in processes.values():
        process.read()
    order = list(processes)
    for number in range(arguments.rounds + 1):
        print(f"round {number} of {arguments.rounds}", file=sys.stderr, flush=True)
        order = [*order[1:], order[0]]
        found = {(turns, size): processes[turns].ask(str(size)) for size in BATCH_ROWS for turns in order}
        if number:
            yield {(turns, size): found[turns, size] for size in BATCH_ROWS for turns in processes}


def _summary(
    key: Key, rounds: Sequence[Mapping[Key, Mapping[str, float]]], arguments: argparse.Namespace
) -> dict[str, Any]:
    first = (arguments.turns[0], key[1])
    return {
        "turns": key[0],
        "batch_rows": key[1],
        "ms_of_a_row": round(1000 * median(each[key]["clock"] for each in rounds) / arguments.rows, 3),
        "cpu_ms_of_a_row": round(1000 * median(each[key]["cpu"] for each in rounds) / arguments.rows, 3),
        "times_as_fast": interval([each[first]["clock"] / each[key]["clock"] for each in rounds]),
    }


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("engine waiting", __doc__)
    parser.add_argument("--model", choices=RANDOM, default="small", help="a shape (default: %(default)s)")
    parser.add_argument(
        "--turns", nargs="+", type=int, default=[0, 1000, 5000, 20000], help="of the loop in which a thread waits"
    )
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--rows", type=int, default=48, help="(default: %(default)s)")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)
