"""What HTTP leaves of the engine: rows answered a second, over those of the bare engine in batches of the same size.

    python -m benchmarks.http rates --device cuda --json benchmarks/results/rates_h100.json    # some minutes
    python -m benchmarks.http rates --device cpu --threads 2 --shape small --seconds 10        # on a CPU

A masked-LM checkpoint of random numbers is served with `python -m service serve` and loaded in this process. In each
round the server gets requests of many inputs (/v1/classify with two labels: every input a distinct row of --row-tokens)
in a closed loop; then the engine computes the same rows for as long, in batches of the mean size that the server's had
in that round, each prepared while the one before computes, as in a replica. A first round that does not count warms
both up. Rates are medians over the rounds; the ratio is of one round, and its median, least and largest are shown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import uvloop

from benchmarks.common import PATIENT, about, parser_of, save
from benchmarks.engine.models import SHAPES, engine_rows_per_s, write_checkpoint
from benchmarks.http.load import LABELS, bodies_of, closed_loop, make_texts
from service.checkpoints.checkpoint import describe
from service.domain import Encoding
from service.engine.engine import Engine
from service.tasks.classification import CLASSIFY
from service.tasks.classify_query import ClassifyQuery, Text
from service.tasks.labels import LabelList
from service.tasks.text_model import TextModel
from service.tools.bench.server_metrics import SECONDS, per_batch, sum_totals
from tests.support.servers import Server, serving

SETTING = ("shape", "threads", "quantization", "inputs", "clients", "rounds", "seconds")


@dataclass(frozen=True, slots=True)
class Turn:
    """The result of one round."""

    http_rows_per_s: float
    engine_rows_per_s: float
    batch_rows: float
    front_cpu_share: float  # of a core

    @property
    def ratio(self) -> float:
        return self.http_rows_per_s / self.engine_rows_per_s


def main(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    is_gpu = arguments.device.startswith("cuda")
    document = {
        "what": "rows per second over HTTP with batched requests, and of the bare engine in the same batches",
        **about(arguments, argv, "torch"),
        "device": torch.cuda.get_device_name(arguments.device) if is_gpu else f"CPU, {arguments.threads} threads",
        "cuda": torch.version.cuda,
        **{name: getattr(arguments, name) for name in SETTING},
        "loads": measure(arguments),
    }
    save(document, arguments.json)
    return 0


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One entry for each number of tokens of a row."""
    torch.set_num_threads(arguments.threads)
    place = "cuda:0" if arguments.device == "cuda" else arguments.device
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random"
        write_checkpoint(path, SHAPES[arguments.shape], "safetensors")
        checkpoint = describe(path, "random")
        flags = ["--model", f"random={path}", "--devices", place, "--quantization", arguments.quantization]
        flags += ["--threads", str(arguments.threads), "--weight-cache-dir", f"{folder}/weights", *PATIENT]
        with serving(*flags) as server:
            engine = Engine.load(checkpoint, device=place, quantization=arguments.quantization)
            engine.warm_up()
            model = TextModel.load(checkpoint)
            return [race(server, engine, model, row_tokens, arguments) for row_tokens in arguments.row_tokens]


def race(
    server: Server, engine: Engine, model: TextModel, row_tokens: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    texts = make_texts(model, row_tokens)
    rows = CLASSIFY.encode(model, ClassifyQuery(tuple(map(Text, texts)), LabelList.of(LABELS)))
    assert {row.num_tokens for row in rows} == {row_tokens}
    bodies = bodies_of(texts, arguments.inputs)
    turns = []
    for number in range(arguments.rounds + 1):
        turn = _turn(server, engine, bodies, rows, arguments)
        print(f"{row_tokens} tokens, round {number}: {turn} ratio {turn.ratio:.3f}", file=sys.stderr, flush=True)
        turns.append(turn)
    entry = {"row_tokens": row_tokens, "precision": engine.precision, **summarize(turns[1:], row_tokens)}
    print("  ".join(f"{key} {value}" for key, value in entry.items()), flush=True)
    return entry


def _turn(
    server: Server, engine: Engine, bodies: list[bytes], rows: list[Encoding], arguments: argparse.Namespace
) -> Turn:
    before = _totals(server)
    found = uvloop.run(closed_loop(server, bodies, arguments.clients, arguments.seconds))
    batches = per_batch(before, _totals(server))
    assert batches, "the server has computed something"
    requests_per_s = found["requests_per_s"]
    return Turn(
        http_rows_per_s=arguments.inputs * requests_per_s,
        engine_rows_per_s=engine_rows_per_s(engine, rows, round(batches["mean_rows"]), arguments.seconds),
        batch_rows=batches["mean_rows"],
        front_cpu_share=requests_per_s * found["parent_cpu_ms"] / 1000,
    )


def _totals(server: Server) -> dict[str, float]:
    return sum_totals(server.get("/metrics").text) | {SECONDS: time.perf_counter()}


def summarize(turns: Sequence[Turn], row_tokens: int) -> dict[str, Any]:
    http = median(turn.http_rows_per_s for turn in turns)
    ratios = sorted(turn.ratio for turn in turns)
    return {
        "batch_rows": round(median(turn.batch_rows for turn in turns), 1),
        "http_rows_per_s": round(http, 1),
        "http_tokens_per_s": round(http * row_tokens),
        "engine_rows_per_s": round(median(turn.engine_rows_per_s for turn in turns), 1),
        "front_cpu_of_a_core": round(median(turn.front_cpu_share for turn in turns), 3),
        "http_over_engine": round(median(ratios), 3),
        "http_over_engine_least_and_largest": [round(ratios[0], 3), round(ratios[-1], 3)],
    }


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("http rates", __doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=SHAPES, default="1.3B")
    parser.add_argument("--quantization", choices=("none", "int8", "fp8"), default="none")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU, for the replica and for the engine here")
    parser.add_argument("--row-tokens", type=int, nargs="+", default=[32, 128], help="one load each")
    parser.add_argument("--inputs", type=int, default=64, help="of a request (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of one turn of each (default: %(default)s)")
    return parser.parse_args(argv)
