"""Measures a model as it is served, against transformers' eager, padded forward and the bare matrix products.

    python -m benchmarks.engine served --threads 2 --json benchmarks/results/served_1_3b.json    # some 15 minutes
    python -m benchmarks.engine served --layers 2 --rounds 1 --seconds 5       # checks that it runs

Writes a masked-LM checkpoint of random numbers with the 1.3B shape, serves it with `python -m service serve`, and loads
the same one into transformers in this process. In each round the server is sent /v1/embed by clients in a closed loop
(`python -m service bench --limit`, which also times the bare matrix products of the batches that the server made); then
transformers encodes texts of the same lengths (lognormal, median 31 tokens, 95 % below 152) in padded batches, for as
long. Both compute in bfloat16 with the same number of threads, and while one is measured the other has nothing to do.
Rates are of real tokens; the ratio is of one round, and its median, least and largest are shown.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.common import PATIENT, about, parser_of, save, service_report
from benchmarks.engine.models import LARGE, LENGTHS, Forward, draw_lengths, load_eager, rows, write_checkpoint
from tests.support.servers import serving

NUM_TEXTS = 512
CLIENTS, BATCH_ROWS = 16, 16


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(folder / "random", replace(LARGE, num_layers=arguments.layers), "safetensors")
        forward = load_eager(folder / "random", "bfloat16")
        flags = ["--model", f"random={folder / 'random'}", "--precision", "bfloat16", *PATIENT]
        flags += ["--threads", str(arguments.threads), "--weight-cache-dir", str(folder / "weights")]
        with serving(*flags) as server:
            rounds = [_round(number, server.port, forward, arguments) for number in range(arguments.rounds)]
    report = {
        "what": "tokens per second as served, and of transformers' eager padded forward, in turn",
        **about(arguments, argv, "torch", "transformers", precision="bfloat16"),
        **{name: getattr(arguments, name) for name in ("layers", "threads", "seconds")},
        "clients": CLIENTS,
        "batch_rows": BATCH_ROWS,
        **_summary(rounds),
        "rounds": rounds,
    }
    save(report, arguments.json)
    return 0


def _round(number: int, port: int, forward: Forward, arguments: argparse.Namespace) -> dict[str, float]:
    """Other texts in each round."""
    flags = ["--url", f"http://127.0.0.1:{port}", "--mix", "embed", "--lengths", LENGTHS, "--limit"]
    flags += ["--concurrency", str(CLIENTS), "--timeout", "600", "--seed", str(number + 1)]
    served = service_report("bench", *flags, "--duration", str(arguments.seconds))
    eager = eager_tokens_per_s(forward, number, arguments.seconds)
    [point] = served["points"]
    limit, results = point["limit"], point["results"]["all"]
    found = {
        "served_tokens_per_s": limit["served_tokens_per_s"],
        "served_requests_per_s": results["requests_per_s"],
        "served_p50_ms": results["latency_ms"]["p50"],
        "served_batch_rows": point["batches"]["mean_rows"],
        "served_over_limit": limit["served_over_limit"],
        "served_over_limit_at_large_batch": limit["served_over_limit_at_large_batch"],
        "eager_tokens_per_s": round(eager, 1),
        "served_over_eager": round(limit["served_tokens_per_s"] / eager, 2),
    }
    print(f"round {number + 1}:", "  ".join(f"{key} {value:g}" for key, value in found.items()), flush=True)
    return found


def eager_tokens_per_s(forward: Forward, seed: int, seconds: float) -> float:
    """Real tokens a second in batches padded to the longest; whole batches, for at least `seconds`."""
    texts = rows(LARGE, [length + 2 for length in draw_lengths(NUM_TEXTS, seed)])  # [CLS] and [SEP]
    batches = cycle([texts[start : start + BATCH_ROWS] for start in range(0, NUM_TEXTS, BATCH_ROWS)])
    forward(next(batches))
    tokens, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        batch = next(batches)
        forward(batch)
        tokens += sum(row.num_tokens for row in batch)
    return tokens / elapsed


def _summary(rounds: Sequence[dict[str, float]]) -> dict[str, Any]:
    ratios = sorted(found["served_over_eager"] for found in rounds)
    summary: dict[str, Any] = {key: round(median(found[key] for found in rounds), 3) for key in rounds[0]}
    summary["served_over_eager_least_and_largest"] = [ratios[0], ratios[-1]]
    print("  ".join(f"{key} {value}" for key, value in summary.items()), flush=True)
    return summary


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("engine served", __doc__)
    parser.add_argument("--layers", type=int, default=LARGE.num_layers, help="24 are 1.3 billion parameters")
    parser.add_argument("--threads", type=int, default=1, help="of the replica and of transformers")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each in a round (default: %(default)s)")
    return parser.parse_args(argv)
