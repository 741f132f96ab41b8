"""What HTTP leaves of the engine: rows answered a second, over those of the bare engine in batches of the same size.

    python -m benchmarks.over_http --device cuda --json benchmarks/results/over_http_h100.json     # some minutes
    python -m benchmarks.over_http --device cpu --threads 2 --shape small --seconds 10             # on a CPU
    python -m benchmarks.over_http --device cpu --shape tiny --seconds 2 --rounds 2                # does it run?

Writes a masked-LM checkpoint of random numbers, serves it with `python -m service serve`, and loads the same one in
this process. In each round the server is sent requests of many inputs (/v1/classify with two labels: every input a row
of exactly so many tokens, all different) in a closed loop; then the engine computes the same rows for as long, in
batches of as many as the server's had in that round, each prepared while the one before computes, as in a replica.
While one is measured the other has nothing to do. A first round that does not count warms both up. Rates are medians
over the rounds; the ratio is of one round, and its median, least and largest are shown.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
import uvloop

from benchmarks.about import about, parser_of, save
from benchmarks.big_checkpoint import write_checkpoint
from benchmarks.front_client import LABELS, Server, messages_of, throughput
from benchmarks.local_server import PATIENT, serving
from service.checkpoints.checkpoint import describe
from service.domain import Encoding, Quantization
from service.engine.engine import Engine
from service.tasks.classification import CLASSIFY, ClassifyQuery, Text
from service.tasks.text_model import TextModel
from service.tools.bench.server_metrics import SECONDS, per_batch, sum_totals

SHAPES: dict[str, dict[str, int]] = {
    "1.3B": {},
    "small": {"num_layers": 6, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "tiny": {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128},
}
NUM_ROWS = 8192
"""More than ever wait: two equal rows in flight would be computed once."""


@dataclass(frozen=True, slots=True)
class Load:
    """So many clients, each with a request of so many inputs on its way, each input a row of so many tokens."""

    row_tokens: int
    inputs: int
    clients: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What is served, on what, and how long each is measured."""

    shape: str
    device: torch.device
    loads: tuple[Load, ...]
    rounds: int
    seconds: float
    threads: int = 1
    quantization: Quantization = "none"

    @property
    def place(self) -> str:
        """As a setting of the service."""
        return "cuda:0" if str(self.device) == "cuda" else str(self.device)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one round came to."""

    http_rows_per_s: float
    engine_rows_per_s: float
    batch_rows: float
    front_cpu_share: float  # of a core

    @property
    def ratio(self) -> float:
        return self.http_rows_per_s / self.engine_rows_per_s


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    device = torch.device(arguments.device)
    loads = tuple(Load(tokens, arguments.inputs, arguments.clients) for tokens in arguments.row_tokens)
    plan = Plan(
        arguments.shape, device, loads, arguments.rounds, arguments.seconds, arguments.threads, arguments.quantization
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {plan.threads} threads"
    document = {
        "what": "rows per second over HTTP with batched requests, and of the bare engine in the same batches",
        **about("over_http", __doc__, arguments.machine, "torch", argv=argv),
        "device": name,
        "cuda": torch.version.cuda,
        **_of(plan),
        "loads": measure(plan),
    }
    save(document, arguments.json)
    return 0


def measure(plan: Plan) -> list[dict[str, Any]]:
    """One entry for each load."""
    torch.set_num_threads(plan.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random"
        write_checkpoint(path, file_format="safetensors", **SHAPES[plan.shape])
        checkpoint = describe(path, "random")
        flags = ["--model", f"random={path}", "--devices", plan.place, "--quantization", plan.quantization]
        flags += ["--threads", str(plan.threads), "--weight-cache-dir", f"{folder}/weights", *PATIENT]
        with serving(*flags) as (port, process):
            engine = Engine.load(checkpoint, device=plan.place, quantization=plan.quantization)
            engine.warm_up()
            server, model = Server("service", port, psutil.Process(process.pid)), TextModel.load(checkpoint)
            return [_entry(load, engine.precision, race(server, engine, model, load, plan)) for load in plan.loads]


def race(server: Server, engine: Engine, model: TextModel, load: Load, plan: Plan) -> list[Turn]:
    texts = make_texts(model, load.row_tokens)
    rows = CLASSIFY.encode(model, ClassifyQuery(tuple(map(Text, texts)), LABELS))
    assert {row.num_tokens for row in rows} == {load.row_tokens}
    messages = messages_of(texts, load.inputs)
    turns = []
    for number in range(plan.rounds + 1):
        turn = _turn(server, engine, messages, rows, load, plan.seconds)
        print(f"{load} round {number}: {turn} ratio {turn.ratio:.3f}", file=sys.stderr, flush=True)
        turns.append(turn)
    return turns[1:]


def _turn(
    server: Server, engine: Engine, messages: list[bytes], rows: list[Encoding], load: Load, seconds: float
) -> Turn:
    before = _totals(server.port)
    found = uvloop.run(throughput(server, messages, load.clients, seconds))
    batches = per_batch(before, _totals(server.port))
    assert batches, "the server has computed something"
    requests_per_s = found["requests_per_s"]
    return Turn(
        http_rows_per_s=load.inputs * requests_per_s,
        engine_rows_per_s=engine_rows_per_s(engine, rows, round(batches["mean_rows"]), seconds),
        batch_rows=batches["mean_rows"],
        front_cpu_share=requests_per_s * found["parent_cpu_ms"] / 1000,
    )


def engine_rows_per_s(engine: Engine, rows: Sequence[Encoding], batch_rows: int, seconds: float) -> float:
    """In batches of so many rows, each prepared before the one ahead of it is waited for."""
    batches = _batches(rows, batch_rows)
    finish, num_batches = engine.prepare(next(batches)), 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        following = engine.prepare(next(batches))
        finish()
        finish, num_batches = following, num_batches + 1
    elapsed = time.perf_counter() - started
    finish()
    return num_batches * batch_rows / elapsed


def _batches(rows: Sequence[Encoding], batch_rows: int) -> Iterator[list[Encoding]]:
    endless = cycle(rows)
    while True:
        yield [next(endless) for _ in range(batch_rows)]


def make_texts(model: TextModel, row_tokens: int) -> list[str]:
    """Distinct texts of random characters, each a row of so many tokens: beside it stand [CLS], two [SEP] and, for each
    label, a [MASK] and its characters."""
    length = row_tokens - 3 - sum(1 + len(label) for label in LABELS)
    characters = [word for word in model.tokenizer.get_vocab() if re.fullmatch("[\u4e00-\u9fff]", word)]
    rng = random.Random(1)
    texts = dict.fromkeys("".join(rng.choices(characters, k=length)) for _ in range(NUM_ROWS))
    return list(texts)


def _totals(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        return sum_totals(page.read().decode()) | {SECONDS: time.perf_counter()}


def _entry(load: Load, precision: str, turns: Sequence[Turn]) -> dict[str, Any]:
    http = median(turn.http_rows_per_s for turn in turns)
    ratios = sorted(turn.ratio for turn in turns)
    entry = {
        **asdict(load),
        "precision": precision,
        "batch_rows": round(median(turn.batch_rows for turn in turns), 1),
        "http_rows_per_s": round(http, 1),
        "http_tokens_per_s": round(http * load.row_tokens),
        "engine_rows_per_s": round(median(turn.engine_rows_per_s for turn in turns), 1),
        "front_cpu_of_a_core": round(median(turn.front_cpu_share for turn in turns), 3),
        "http_over_engine": round(median(ratios), 3),
        "http_over_engine_least_and_largest": [round(ratios[0], 3), round(ratios[-1], 3)],
    }
    print("  ".join(f"{key} {value}" for key, value in entry.items()), flush=True)
    return entry


def _of(plan: Plan) -> dict[str, Any]:
    return {
        "shape": plan.shape,
        "threads": plan.threads,
        "quantization": plan.quantization,
        "rounds": plan.rounds,
        "seconds_of_a_turn": plan.seconds,
    }


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of("over_http", __doc__)
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


if __name__ == "__main__":
    sys.exit(main())
