"""The limit of a run: what the bare matrix products of the same batches would have taken, and how near the server came.

Asked of the engine's room in a process of its own, with as many threads as a replica has, while the server is idle.
Knows no torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

LARGE_BATCH = {"cpu": 1024, "cuda": 8192}
"""Tokens by which the matrix products of any shape served here run at their full rate."""
TIMEOUT_S = 900.0


def add_limits(report: dict[str, Any], model: str | None) -> None:
    """Adds `limit` to every point of a report. ValueError when the server does not tell what is to be known."""
    question = limit_question(report["models"], model or _only(report["answered_by"]))
    counts = [round(point["batches"]["mean_tokens"]) if point["batches"] else None for point in report["points"]]
    large = LARGE_BATCH[question["device"].partition(":")[0]]
    sizes = sorted({max(count, 1) for count in counts if count} | {large})
    replicas = len(report["models"]["replicas"])
    found = dict(zip(sizes, measure_limits({**question, "token_counts": sizes}), strict=True))
    rates = {tokens: replicas * tokens / one["seconds"] for tokens, one in found.items()}
    for point, count in zip(report["points"], counts, strict=True):
        point["limit"] = compare_with_limit(point["batches"], rates, count, large, replicas) if count else None
    ways = {str(tokens): one["way"] for tokens, one in found.items()}
    report["limit"] = question | {"replicas": replicas, "quickest_way_by_tokens": ways}


def compare_with_limit(
    batches: Mapping[str, float], rates: Mapping[int, float], mean_tokens: int, large: int, replicas: int
) -> dict[str, float]:
    """Served tokens per second over those of the bare products, at the run's own batch size and at a large one; and
    the same of the time in which the replicas computed, which leaves out that they waited for work."""
    served = batches["batches"] * batches["mean_tokens"] / batches["seconds"]
    computing = replicas * batches["mean_tokens"] / batches["mean_compute_s"]
    return {
        "mean_tokens": mean_tokens,
        "served_tokens_per_s": round(served, 1),
        "gemm_tokens_per_s": round(rates[mean_tokens], 1),
        "large_batch_tokens": large,
        "gemm_tokens_per_s_at_large_batch": round(rates[large], 1),
        "served_over_limit": round(served / rates[mean_tokens], 4),
        "served_over_limit_at_large_batch": round(served / rates[large], 4),
        "computing_over_limit": round(computing / rates[mean_tokens], 4),
    }


def limit_question(models: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What to ask for a model, from what /v1/models said."""
    try:
        model = next(one for one in models["models"] if one["name"] == name)
        sizes = {key: model[key] for key in ("num_layers", "hidden_size", "ffn_size")}
        replica = models["replicas"][0]
        device, threads = replica["device"], replica["threads"]
        (precision,) = model["precision"]
    except (StopIteration, KeyError, IndexError, TypeError, ValueError):
        raise ValueError(f"the server does not tell the shape, precision and threads of {name!r}") from None
    return {"sizes": sizes, "precision": precision, "device": device, "threads": threads}


def measure_limits(question: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """`seconds` of a batch and the `way` to multiply, for each of the token counts. ValueError when it cannot be."""
    threads = str(question["threads"])
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "service.engine.limit"]
    asked = json.dumps(question)
    try:
        done = subprocess.run(command, input=asked, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ValueError(f"the limit could not be measured within {TIMEOUT_S:.0f} s") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(f"the limit could not be measured: {reason}")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def _only(names: Sequence[str]) -> str:
    if len(names) != 1:
        raise ValueError(f"--limit is that of one model, here answered {', '.join(names)}: name one with --model")
    return names[0]
