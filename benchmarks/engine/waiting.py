"""Measures how long torch's threads should wait busily for the next step of a layer (GOMP_SPINCOUNT; 0: not at all).

    python -m benchmarks.engine waiting --model small --json benchmarks/results/waiting.json

One process for each number of turns, with the encoder computed by torch in float32; all compute the same rows, one at a
time and in batches of 16, alternately and with pauses, as in the benchmark of the runtimes, and with its medians and
intervals. Ratios are of one round, over the first of --turns. What a thread takes from the cores while it waits for the
next batch, which it may never get, is in the CPU milliseconds of a row.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from statistics import median
from typing import Any

import torch

from benchmarks.common import about, parser_of, save
from benchmarks.engine.models import LENGTHS
from benchmarks.engine.runtimes import (
    BATCH_ROWS,
    RANDOM,
    Contender,
    Process,
    Round,
    Seconds,
    find_checkpoint,
    in_parts,
    interval,
    process,
    race,
    time_rows,
)
from benchmarks.peers.exported import encode
from benchmarks.peers.rounds import make_texts
from service.engine.engine import Engine

PRECISION = "float32"


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    if arguments.answer:
        _answer(arguments)
        return 0
    with ExitStack() as stack:
        contenders = [contender(turns, stack.enter_context(_process(turns, arguments))) for turns in arguments.turns]
        rounds = list(race(contenders, arguments.rounds, num_parts=len(in_parts(range(arguments.rows)))))
    document = {
        "what": "milliseconds of a row by torch in float32, by the turns for which its threads wait busily",
        **about(arguments, argv, "torch"),
        **{name: getattr(arguments, name) for name in ("model", "threads", "rounds", "rows")},
        "results": summarize(rounds, arguments.turns, arguments.rows),
    }
    save(document, arguments.json)
    for each in document["results"]:
        print(json.dumps(each))
    return 0


def _process(turns: int, arguments: argparse.Namespace) -> AbstractContextManager[Process]:
    command = [sys.executable, "-m", "benchmarks.engine", "waiting", "--answer", "--model", arguments.model]
    command += ["--threads", str(arguments.threads), "--rows", str(arguments.rows)]
    return process(command, f"{turns} turns", arguments.threads, GOMP_SPINCOUNT=str(turns))


def contender(turns: int, asked: Process) -> Contender:
    return Contender(str(turns), PRECISION, lambda part, size: Seconds(**asked.ask(str(part), str(size))))


def _answer(arguments: argparse.Namespace) -> None:
    """For each line of stdin: which part it is, and the number of rows of a batch."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(arguments.threads)
    checkpoint, _ = find_checkpoint(arguments.model)
    engine = Engine.load(checkpoint, precision=PRECISION, runtime="torch")
    engine.warm_up()
    rows = encode(checkpoint, make_texts(LENGTHS, arguments.rows, seed=1))
    run = time_rows(engine, in_parts(rows))
    print(json.dumps({"loaded": True}), file=answers)
    for line in sys.stdin:
        print(json.dumps(asdict(run(*map(int, line.split())))), file=answers)


def summarize(rounds: Sequence[Round], turns: Sequence[int], num_rows: int) -> list[dict[str, Any]]:
    """Milliseconds of a row, and the ratios over the first of `turns`."""

    def summary(each: int, size: int) -> dict[str, Any]:
        own, first = ([found[str(number), PRECISION, size] for found in rounds] for number in (each, turns[0]))
        return {
            "turns": each,
            "batch_rows": size,
            "ms_of_a_row": round(1000 * median(seconds.clock for seconds in own) / num_rows, 3),
            "cpu_ms_of_a_row": round(1000 * median(seconds.cpu for seconds in own) / num_rows, 3),
            "times_as_fast": interval([theirs.clock / ours.clock for theirs, ours in zip(first, own, strict=True)]),
        }

    return [summary(each, size) for size in BATCH_ROWS for each in turns]


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
