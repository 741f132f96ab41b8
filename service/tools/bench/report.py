"""The report of a bench run: rates and latencies of the requests, text tables, the comparison with the hardware's
limit, and the plot."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from service.host import install_command, thread_variables

QUANTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. `outcome` is the HTTP status, "timeout" or "connection"."""

    task: str
    started_s: float
    latency_s: float
    outcome: str
    num_inputs: int
    num_tokens: int

    @property
    def ended_s(self) -> float:
        return self.started_s + self.latency_s

    @property
    def is_answered(self) -> bool:
        return self.outcome == "200"


@dataclass(frozen=True, slots=True)
class Window:
    """The measured time: after the warm-up, before the last requests end."""

    from_s: float
    until_s: float

    @property
    def duration_s(self) -> float:
        return self.until_s - self.from_s

    def holds(self, at_s: float) -> bool:
        return self.from_s <= at_s <= self.until_s


def summarize(samples: Sequence[Sample], window: Window) -> dict[str, dict[str, Any]]:
    """One row for all tasks together, then one per task. Rates count the requests that ended in the window; requests,
    outcomes and latencies are of those that started in it, however late they ended."""
    tasks = sorted({sample.task for sample in samples})
    rows = {"all": _row(samples, window)}
    return rows | {task: _row([s for s in samples if s.task == task], window) for task in tasks}


def format_table(rows: Mapping[str, dict[str, Any]], of: str = "task") -> str:
    """One line per row; `of` is the heading of the rows' names."""
    rates = ["offered/s", "req/s", "inputs/s", "tokens/s"]
    head = [of, "requests", "failed", *rates, *(f"p{q} ms" for q in QUANTILES), "max ms"]
    lines = [head, *([name, *_cells(row)] for name, row in rows.items())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def format_report(report: Mapping[str, Any]) -> str:
    """The report as text: one table of the loads if there are several, and one of the tasks for each load."""
    points = report["points"]
    lines = [report["method"], f"texts: {report['corpus']['about']}"]
    lines += [f"{task} is left out: {reason}" for task, reason in report["left_out"].items()]
    if len(points) > 1:
        lines.append(format_table({point["load"]: point["results"]["all"] for point in points}, of="load"))
    for point in points:
        lines.append(format_table(point["results"], of="task" if len(points) == 1 else point["load"]))
        lines += _about(point, report["duration_s"])
    return "\n".join(lines)


def _about(point: Mapping[str, Any], duration_s: float) -> Iterator[str]:
    if not point["results"]["all"]["ended"]:
        yield f"{point['load']}: no request ended in the {duration_s:g} s that were measured: try a longer --duration"
    if batches := point["batches"]:
        rows, tokens, ms = batches["mean_rows"], batches["mean_tokens"], 1000 * batches["mean_compute_s"]
        yield f"{point['load']}: {batches['batches']:.0f} batches of {rows:.1f} rows, {tokens:.0f} tokens, {ms:.1f} ms"
    if saved := point["not_computed"]:
        shared, kept = saved["shared_rows"], saved["cache_hit_rows"]
        yield (
            f"{point['load']}: {shared:.0f} rows shared the result of an equal row in flight, "
            f"{kept:.0f} came from the result cache"
        )
    if limit := point.get("limit"):
        yield (
            f"{point['load']}: {limit['served_tokens_per_s']:,.0f} tokens/s served, {limit['served_over_limit']:.0%} "
            f"of the rate of their matrix products alone, {limit['served_over_limit_at_large_batch']:.0%} of that of "
            f"batches of {limit['large_batch_tokens']} tokens; {limit['computing_over_limit']:.0%} while computing"
        )


def _row(samples: Sequence[Sample], window: Window) -> dict[str, Any]:
    due = [sample for sample in samples if window.holds(sample.started_s)]
    ended = [sample for sample in samples if window.holds(sample.ended_s)]
    answered = [sample for sample in ended if sample.is_answered]
    duration_s = window.duration_s
    return {
        "requests": len(due),
        "outcomes": dict(Counter(sample.outcome for sample in due)),
        "offered_per_s": len(due) / duration_s,
        "ended": len(ended),
        "requests_per_s": len(answered) / duration_s,
        "inputs_per_s": sum(sample.num_inputs for sample in answered) / duration_s,
        "tokens_per_s": sum(sample.num_tokens for sample in answered) / duration_s,
        "latency_ms": _latencies([sample.latency_s * 1000 for sample in due if sample.is_answered]),
    }


def _latencies(values: Sequence[float]) -> dict[str, float] | None:
    """Percentiles, mean and maximum in ms; None for no values."""
    if not values:
        return None
    quantiles = np.percentile(values, QUANTILES)
    named = {f"p{q}": round(float(value), 3) for q, value in zip(QUANTILES, quantiles, strict=True)}
    return named | {"mean": round(float(np.mean(values)), 3), "max": round(max(values), 3)}


def _cells(row: dict[str, Any]) -> list[str]:
    failed = row["requests"] - row["outcomes"].get("200", 0)
    rates = [f"{row[key]:,.1f}" for key in ("offered_per_s", "requests_per_s", "inputs_per_s")]
    rates.append(f"{row['tokens_per_s']:,.0f}")
    latency = row["latency_ms"] or {}
    times = [f"{latency[key]:,.1f}" if latency else "-" for key in (*(f"p{q}" for q in QUANTILES), "max")]
    return [str(row["requests"]), str(failed), *rates, *times]


LARGE_BATCH = {"cpu": 1024, "cuda": 8192}
"""Tokens at which the matrix products of every served shape run at their full rate."""
LIMIT_TIMEOUT_S = 900.0


def add_limits(report: dict[str, Any], model: str | None) -> None:
    """Adds `limit` to the report and to each of its points.

    Raises:
        ValueError: the server does not report the model's shape, or the limit cannot be measured.
    """
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
    """Served tokens per second relative to the matrix products alone, at the run's mean batch size and at a large one;
    and the same rate over the time in which the replicas computed, which leaves out their idle time."""
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
    """The question to the roofline for a model, from the answer of /v1/models."""
    try:
        model = next(one for one in models["models"] if one["name"] == name)
        sizes = {key: model[key] for key in ("num_layers", "hidden_size", "ffn_size")}
        replica = models["replicas"][0]
        device, threads = replica["device"], replica["threads"]
        (precision,) = model["precision"]
    except (StopIteration, KeyError, IndexError, TypeError, ValueError):
        raise ValueError(f"/v1/models does not give the shape, precision and threads of {name!r}") from None
    return {"sizes": sizes, "precision": precision, "device": device, "threads": threads}


def measure_limits(question: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """`seconds` of a batch and the fastest `way` to multiply, for each of the token counts.

    The roofline runs in a process of its own: it needs torch, and a fixed number of threads.

    Raises:
        ValueError: it fails, or takes longer than LIMIT_TIMEOUT_S.
    """
    command, environment = [sys.executable, "-m", "service.tools.roofline"], thread_variables(question["threads"])
    options: dict[str, Any] = {"env": environment, "capture_output": True, "text": True, "timeout": LIMIT_TIMEOUT_S}
    try:
        done = subprocess.run(command, input=json.dumps(question), **options)
    except subprocess.TimeoutExpired:
        raise ValueError(f"the limit could not be measured within {LIMIT_TIMEOUT_S:.0f} s") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(f"the limit could not be measured: {reason}")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def _only(names: Sequence[str]) -> str:
    if len(names) != 1:
        raise ValueError(f"--limit needs one model, but {', '.join(names)} answered: choose one with --model")
    return names[0]


PLOTTED = ("p50", "p95", "p99")


def require_matplotlib() -> None:
    """Raises ValueError if matplotlib is not installed: called before a long run, not after it."""
    try:
        import matplotlib as _  # noqa: F401 - the import takes a second and only --plot needs it
    except ImportError:
        raise ValueError(f"--plot needs matplotlib: {install_command('-r requirements/bench.txt')}") from None


def plot(report: Mapping[str, Any], file: Path) -> None:
    """One line per percentile, one mark per load; loads without an answered request are left out."""
    require_matplotlib()
    from matplotlib.figure import Figure

    answered = [point for point in report["points"] if point["results"]["all"]["latency_ms"]]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for quantile in PLOTTED:
        rates, latencies = latency_curve(answered, quantile)
        axes.plot(rates, latencies, marker="o", label=quantile)
    for point in answered:
        row = point["results"]["all"]
        place = (row["inputs_per_s"], row["latency_ms"]["p50"])
        axes.annotate(point["load"], place, xytext=(4, -12), textcoords="offset points", fontsize=8)
    axes.set(xlabel="inputs per second", ylabel="latency in ms", title=plot_title(report), yscale="log")
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatter("{x:g}")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(file, format="png", dpi=120)


def latency_curve(points: Sequence[Mapping[str, Any]], quantile: str) -> tuple[list[float], list[float]]:
    """Inputs per second and latencies in ms, in the order of the sweep."""
    rows = [point["results"]["all"] for point in points]
    return [row["inputs_per_s"] for row in rows], [row["latency_ms"][quantile] for row in rows]


def plot_title(report: Mapping[str, Any]) -> str:
    """The models, their precision and the kind of load. No Chinese: the usual fonts of a server lack its characters."""
    answered = [model for model in report["models"]["models"] if model["name"] in report["answered_by"]]
    named = ", ".join(f"{model['name']} {'/'.join(model['precision'])}" for model in answered)
    return f"{named}: {report['method'].partition(':')[0]}"
