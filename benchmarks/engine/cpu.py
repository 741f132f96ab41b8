"""Measures the engine against transformers' eager, padded forward and the bare matrix products of its tokens.

    python -m benchmarks.engine cpu --shape small --json benchmarks/results/engine_small.json
    python -m benchmarks.engine cpu --shape 1.3b --threads 2 --rounds 3 --json benchmarks/results/engine_1_3b.json

Writes a checkpoint of random numbers, loads it with both, and lets them compute the same batches of 16 rows, lengths
lognormal (median 31 tokens, 95 % below 152), in turn, round after round, in one process. The engine runs in each of the
arithmetics, transformers in bfloat16 (and in float32 for the small shape). Prints rows per second, the ratios
with their spread over the rounds, and the share of the bare products' rate; the outputs are compared on the way.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.common import about, auto_precision, parser_of, save
from benchmarks.engine.models import SHAPES, Forward, draw_lengths, load_eager, rows, write_checkpoint
from service.checkpoints.checkpoint import describe
from service.checkpoints.shape import Shape
from service.domain import Encoding
from service.engine.engine import Engine
from service.tools import roofline

SIZES = {"small": SHAPES["small"], "1.3b": SHAPES["1.3B"]}
NUM_ROWS = {"small": 192, "1.3b": 64}
BATCH_SIZES = {"small": (1, 16), "1.3b": (16,)}
BATCH_ROWS = 16


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to compute batches, in one arithmetic."""

    name: str
    arithmetic: str
    batch_rows: int
    forward: Forward


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    torch.set_num_threads(arguments.threads)
    shape, num_rows = SIZES[arguments.shape], NUM_ROWS[arguments.shape]
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), shape, "safetensors")
        contenders = list(make_contenders(Path(folder), arguments.shape))
    batch = rows(shape, draw_lengths(num_rows))
    compare(contenders, batch[:BATCH_ROWS])
    seconds = race(contenders, batch, arguments.rounds)
    tokens = sum(row.num_tokens for row in batch)
    results = []
    for index, (each, column) in enumerate(zip(contenders, zip(*seconds, strict=True), strict=True)):
        taken = median(column)
        result = {"who": each.name, "arithmetic": each.arithmetic, "batch_rows": each.batch_rows}
        result |= {"rows_per_s": round(num_rows / taken, 2), "tokens_per_s": round(tokens / taken, 1)}
        if each.name == "engine":
            result["of_limit"] = _share(shape, arguments.threads, each, num_rows, tokens, taken)
            result["over_transformers"] = _ratios(contenders, seconds, index)
        results.append(result)
        print("  ".join(f"{key} {value}" for key, value in result.items()))
    document = {
        "what": "rows per second of the engine and of transformers' eager padded forward; medians over rounds in turn",
        **about(arguments, argv, "torch", "transformers", "numpy"),
        **{name: getattr(arguments, name) for name in ("shape", "threads", "rounds")},
        "rows": num_rows,
        "tokens": tokens,
        "results": results,
    }
    save(document, arguments.json)
    return 0


def make_contenders(folder: Path, shape: str) -> Iterator[Contender]:
    checkpoint = describe(folder, "random")
    precisions = ("float32", "bfloat16") if shape == "small" else ("bfloat16",)
    if auto_precision() == "float32":  # the CPU has no bfloat16
        precisions = ("float32",)
    loaded = [("engine", each, _first_states(Engine.load(checkpoint, precision=each))) for each in precisions]
    quantized = Engine.load(checkpoint, precision=precisions[-1], quantization="int8")
    loaded.append(("engine", "int8", _first_states(quantized)))
    loaded += [("transformers", each, load_eager(folder, each)) for each in precisions]
    for name, arithmetic, forward in loaded:
        yield from (Contender(name, arithmetic, size, forward) for size in BATCH_SIZES[shape])


def _first_states(engine: Engine) -> Forward:
    return lambda batch: np.stack([output.scores for output in engine.run(batch)])


def compare(contenders: Sequence[Contender], batch: Sequence[Encoding]) -> None:
    """The states of one batch against those of the last contender, which is transformers; ends the run where they
    differ. This warms up all contenders."""
    wanted = contenders[-1].forward(batch).ravel()
    for each in contenders:
        got = each.forward(batch).ravel()
        cosine = float((got * wanted).sum() / np.linalg.norm(got) / np.linalg.norm(wanted))
        print(f"{each.name} {each.arithmetic}: cosine {cosine:.5f} to {contenders[-1].name}", file=sys.stderr)
        if not cosine > 0.98:
            sys.exit("they do not compute the same model")


def race(contenders: Sequence[Contender], batch: Sequence[Encoding], rounds: int) -> list[list[float]]:
    """Seconds for all rows, per round and contender; in turn, so that a noisy minute slows them all."""
    seconds = []
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        seconds.append([_seconds(each, batch) for each in contenders])
    return seconds


def _seconds(contender: Contender, batch: Sequence[Encoding]) -> float:
    started = time.perf_counter()
    for start in range(0, len(batch), contender.batch_rows):
        contender.forward(batch[start : start + contender.batch_rows])
    return time.perf_counter() - started


def _share(shape: Shape, threads: int, each: Contender, num_rows: int, tokens: int, seconds: float) -> float:
    """The share of the rate of the bare products of the same batches, multiplied in the quickest way."""
    sizes = roofline.Sizes(shape.num_layers, shape.hidden_size, shape.ffn_size)
    num_batches = -(-num_rows // each.batch_rows)
    question = roofline.Question(sizes, (max(1, round(tokens / num_batches)),), each.arithmetic, threads=threads)
    [bare] = roofline.limits(question)
    return round(bare.seconds * num_batches / seconds, 3)


def _ratios(contenders: Sequence[Contender], seconds: list[list[float]], index: int) -> dict[str, list[float]]:
    """Least, median and greatest ratio over the rounds to each of transformers' ways."""
    ratios = {}
    for peer, each in enumerate(contenders):
        if each.name == "transformers":
            by_round = sorted(row[peer] / row[index] for row in seconds)
            spread = [round(value, 2) for value in (by_round[0], median(by_round), by_round[-1])]
            ratios[f"{each.arithmetic}, {each.batch_rows} a batch"] = spread
    return ratios


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("engine cpu", __doc__)
    parser.add_argument("--shape", choices=SIZES, default="small")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args(argv)
