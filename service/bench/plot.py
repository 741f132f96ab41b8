"""A picture of a sweep: latency against throughput, as a PNG. The only file here that needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PLOTTED = ("p50", "p95", "p99")
MISSING = "--plot needs matplotlib: pip install -r requirements-bench.txt"


def require_matplotlib() -> None:
    """ValueError when there is no matplotlib: better before a long run than after it."""
    try:
        import matplotlib as _  # noqa: F401 - it takes a second, and only --plot wants it
    except ImportError:
        raise ValueError(MISSING) from None


def plot(report: Mapping[str, Any], file: Path) -> None:
    """One line for each percentile, one mark for each load; loads that answered nothing are left out."""
    require_matplotlib()
    from matplotlib.figure import Figure

    answered = [point for point in report["points"] if point["results"]["all"]["latency_ms"]]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for quantile in PLOTTED:
        rates, latencies = plot_line(answered, quantile)
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


def plot_line(points: Sequence[Mapping[str, Any]], quantile: str) -> tuple[list[float], list[float]]:
    """Inputs per second and milliseconds, in the order of the sweep."""
    rows = [point["results"]["all"] for point in points]
    return [row["inputs_per_s"] for row in rows], [row["latency_ms"][quantile] for row in rows]


def plot_title(report: Mapping[str, Any]) -> str:
    """Which model in which arithmetic under which load. No Chinese: the usual fonts of a server draw none."""
    answered = [model for model in report["models"]["models"] if model["name"] in report["answered_by"]]
    named = ", ".join(f"{model['name']} {'/'.join(model['precision'])}" for model in answered)
    return f"{named}: {report['method'].partition(':')[0]}"
