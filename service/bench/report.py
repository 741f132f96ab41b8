"""What a load run measured, as numbers and as a table. Knows no HTTP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

QUANTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. `outcome` is "200", another status, or what broke ("timeout", "connection")."""

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
    """The time that is measured: after the warm-up, before the tail."""

    from_s: float
    until_s: float

    @property
    def duration_s(self) -> float:
        return self.until_s - self.from_s

    def holds(self, at_s: float) -> bool:
        return self.from_s <= at_s <= self.until_s


def summarize(samples: Sequence[Sample], window: Window) -> dict[str, dict[str, Any]]:
    """One row for all tasks together, then one per task. Rates count what ended in the window, whenever it began;
    requests, outcomes and latencies are of all that were due in it, however late they ended."""
    tasks = sorted({sample.task for sample in samples})
    rows = {"all": _row(samples, window)}
    return rows | {task: _row([s for s in samples if s.task == task], window) for task in tasks}


def format_table(rows: Mapping[str, dict[str, Any]], of: str = "task") -> str:
    """One line for each row, whose names are those of an `of`."""
    rates = ["offered/s", "req/s", "inputs/s", "tokens/s"]
    head = [of, "requests", "failed", *rates, *(f"p{q} ms" for q in QUANTILES), "max ms"]
    lines = [head, *([name, *_cells(row)] for name, row in rows.items())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def format_report(report: Mapping[str, Any]) -> str:
    """For people: by load where several were measured, and by task of each."""
    points = report["points"]
    lines = [report["method"], f"load: {report['corpus']['about']}"]
    lines += [f"{task} is left out: {reason}" for task, reason in report["left_out"].items()]
    if len(points) > 1:
        lines.append(format_table({point["load"]: point["results"]["all"] for point in points}, of="load"))
    for point in points:
        lines.append(format_table(point["results"], of="task" if len(points) == 1 else point["load"]))
        lines += _about(point, report["duration_s"])
    return "\n".join(lines)


def _about(point: Mapping[str, Any], duration_s: float) -> Iterator[str]:
    if not point["results"]["all"]["ended"]:
        yield f"{point['load']}: nothing ended in the {duration_s:g} s that were measured: try a longer --duration"
    if batches := point["batches"]:
        rows, tokens, ms = batches["mean_rows"], batches["mean_tokens"], 1000 * batches["mean_compute_s"]
        yield f"{point['load']}: {batches['batches']:.0f} batches of {rows:.1f} rows, {tokens:.0f} tokens, {ms:.1f} ms"
    if saved := point["not_computed"]:
        shared, kept = saved["shared_rows"], saved["cache_hit_rows"]
        yield f"{point['load']}: {shared:.0f} rows shared an equal one in flight, {kept:.0f} came from the result cache"
    if limit := point.get("limit"):
        yield (
            f"{point['load']}: {limit['served_tokens_per_s']:,.0f} tokens/s served, {limit['served_over_limit']:.0%} "
            f"of the bare matrix products of such batches, {limit['served_over_limit_at_large_batch']:.0%} of those of "
            f"{limit['large_batch_tokens']} tokens; while computing {limit['computing_over_limit']:.0%}"
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
    """Of the answered requests only; None when there are none."""
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
