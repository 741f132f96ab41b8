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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import MegatronBertConfig, MegatronBertForSequenceClassification

from benchmarks.common import about, auto_precision, parser_of, save
from benchmarks.engine.models import SHAPES, VOCAB_SIZE
from service.checkpoints.checkpoint import describe
from service.domain import Encoding, Labels
from service.engine.engine import Engine
from service.tools import roofline
from service.tools.bench.texts import Lengths

SIZES = {"small": SHAPES["small"], "1.3b": SHAPES["1.3B"]}
NUM_ROWS = {"small": 192, "1.3b": 64}
BATCH_SIZES = {"small": (1, 16), "1.3b": (16,)}
BATCH_ROWS = 16
LENGTHS = Lengths.parse("lognormal:31:152")
"""Median and 95th percentile of the tokens of a row."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Forward = Callable[[Sequence[Encoding]], np.ndarray[Any, Any]]


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
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), arguments.shape)
        contenders = list(make_contenders(Path(folder), arguments.shape))
    rows = make_rows(NUM_ROWS[arguments.shape])
    compare(contenders, rows[:BATCH_ROWS])
    seconds = race(contenders, rows, arguments.rounds)
    report(arguments, argv, contenders, rows, seconds)
    return 0


def write_checkpoint(folder: Path, shape: str) -> None:
    """In bfloat16, so that both load the same numbers whatever they compute in."""
    torch.manual_seed(0)
    sizes = SIZES[shape]
    config = MegatronBertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        intermediate_size=sizes.ffn_size,
        hidden_act="gelu_new",
        id2label=dict(enumerate("abc")),
    )
    torch.set_default_dtype(torch.bfloat16)
    model = MegatronBertForSequenceClassification(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"[unused{index}]\n" for index in range(VOCAB_SIZE)), encoding="utf-8")


def make_contenders(folder: Path, shape: str) -> Iterator[Contender]:
    checkpoint = describe(folder, "engine")
    sizes = BATCH_SIZES[shape]
    precisions = ("float32", "bfloat16") if shape == "small" else ("bfloat16",)
    if auto_precision() == "float32":  # the CPU has no bfloat16
        precisions = ("float32",)
    for precision in precisions:
        engine = Engine.load(checkpoint, precision=precision)
        yield from (Contender("engine", precision, size, scores_of(engine)) for size in sizes)
    quantized = Engine.load(checkpoint, precision=precisions[-1], quantization="int8")
    yield from (Contender("engine", "int8", size, scores_of(quantized)) for size in sizes)
    for precision in precisions:
        model = MegatronBertForSequenceClassification.from_pretrained(
            folder, dtype=DTYPES[precision], attn_implementation="eager"
        ).eval()
        yield from (Contender("transformers", precision, size, padded_scores_of(model)) for size in sizes)


def scores_of(engine: Engine) -> Forward:
    return lambda rows: np.concatenate([output.scores for output in engine.run(rows)])


def padded_scores_of(model: torch.nn.Module) -> Forward:
    @torch.inference_mode()
    def forward(rows: Sequence[Encoding]) -> np.ndarray[Any, Any]:
        ids = torch.zeros(len(rows), max(row.num_tokens for row in rows), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : row.num_tokens] = torch.from_numpy(row.ids)
            mask[index, : row.num_tokens] = 1
        return np.asarray(model(input_ids=ids, attention_mask=mask).logits.float())

    return forward


def make_rows(num_rows: int) -> list[Encoding]:
    """Lengths at even quantiles of the distribution, in random order: no draw has fewer long rows than another."""
    draw = np.random.default_rng(1)
    quantiles = [LENGTHS.quantile((index + 0.5) / num_rows) for index in range(num_rows)]
    lengths = np.clip(np.round(quantiles), 4, 512).astype(int)
    draw.shuffle(lengths)
    return [
        Encoding(
            "engine",
            draw.integers(5, VOCAB_SIZE, length).astype(np.int32),
            np.zeros(length, np.int32),
            np.arange(length, dtype=np.int32),
            Labels(),
        )
        for length in lengths
    ]


def compare(contenders: Sequence[Contender], rows: Sequence[Encoding]) -> None:
    """The logits of one batch against those of the last contender, which is transformers; ends the run where they
    differ. This warms up all contenders."""
    wanted = contenders[-1].forward(rows)
    for each in contenders:
        got = each.forward(rows)
        cosine = float((got * wanted).sum() / np.linalg.norm(got) / np.linalg.norm(wanted))
        print(f"{each.name} {each.arithmetic}: cosine {cosine:.5f} to {contenders[-1].name}", file=sys.stderr)
        if not cosine > 0.98:
            sys.exit("they do not compute the same model")


def race(contenders: Sequence[Contender], rows: Sequence[Encoding], rounds: int) -> list[list[float]]:
    """Seconds for all rows, per round and contender; in turn, so that a noisy minute slows them all."""
    seconds = []
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        seconds.append([_seconds(each, rows) for each in contenders])
    return seconds


def _seconds(contender: Contender, rows: Sequence[Encoding]) -> float:
    started = time.perf_counter()
    for start in range(0, len(rows), contender.batch_rows):
        contender.forward(rows[start : start + contender.batch_rows])
    return time.perf_counter() - started


def report(
    arguments: argparse.Namespace,
    argv: Sequence[str],
    contenders: Sequence[Contender],
    rows: Sequence[Encoding],
    seconds: list[list[float]],
) -> None:
    tokens = sum(row.num_tokens for row in rows)
    results = [
        {
            "who": each.name,
            "arithmetic": each.arithmetic,
            "batch_rows": each.batch_rows,
            "rows_per_s": round(len(rows) / median(column), 2),
            "tokens_per_s": round(tokens / median(column), 1),
            "of_limit": _share(arguments, each, rows, median(column)) if each.name == "engine" else None,
            "over_transformers": _ratios(contenders, seconds, index) if each.name == "engine" else None,
        }
        for index, (each, column) in enumerate(zip(contenders, zip(*seconds, strict=True), strict=True))
    ]
    for result in results:
        print("  ".join(f"{key} {value}" for key, value in result.items() if value is not None))
    document = {
        "what": "rows per second of the engine and of transformers' eager padded forward; medians over rounds in turn",
        **about(arguments, argv, "torch", "transformers", "numpy"),
        "shape": arguments.shape,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "rows": len(rows),
        "tokens": tokens,
        "results": results,
    }
    save(document, arguments.json)


def _share(arguments: argparse.Namespace, each: Contender, rows: Sequence[Encoding], seconds: float) -> float:
    """The share of the rate of the bare products of the same batches, multiplied in the quickest way."""
    shape = SIZES[arguments.shape]
    sizes = roofline.Sizes(shape.num_layers, shape.hidden_size, shape.ffn_size)
    batches = [rows[start : start + each.batch_rows] for start in range(0, len(rows), each.batch_rows)]
    mean = max(1, round(sum(row.num_tokens for row in rows) / len(batches)))
    [bare] = roofline.limits(roofline.Question(sizes, (mean,), each.arithmetic, threads=arguments.threads))
    return round(bare.seconds * len(batches) / seconds, 3)


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
