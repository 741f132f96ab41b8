"""Tries the dashboards and alerts with a real Prometheus and Alertmanager: `make check-monitoring`.

    python -m benchmarks.dashboards
    python -m benchmarks.dashboards --pictures docs/dashboards

A service with two models and API keys is scraped under load. A replica is killed and the service is overloaded; both
alerts have to reach Alertmanager. Then every expression of every panel and rule has to have an answer. With --pictures
the dashboards are drawn from what Prometheus has stored.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.monitoring import TOOLS, Stack, Variables, dashboards, kill_replica, loading, monitored, unanswered

CALM_S, BUSY_S, BACK_S, AFTER_S, ALERT_S = 75, 45, 20, 45, 240
WINDOWS = Variables(window="15s", whole="5m", over="45s", before="1m")


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    if absent := [tool for tool in TOOLS if shutil.which(tool) is None]:
        names = ", ".join(absent)
        print(f"skipped: not installed: {names} (on Debian: apt install prometheus prometheus-alertmanager)")
        return 0
    from benchmarks.peers.checkpoint import make_checkpoint  # imports torch and transformers

    with tempfile.TemporaryDirectory(prefix="monitoring-") as name:
        models = ("--model", "mini=mini", "--model", f"news={make_checkpoint(Path(name) / 'news')}")
        with monitored(Path(name), *models) as stack:
            return tour(stack, Path(name), arguments)


def tour(stack: Stack, folder: Path, arguments: Namespace) -> int:
    start, is_good = time.time(), True
    load = partial(loading, stack.service, texts=arguments.texts)
    batch = partial(load, key=folder / "batch.key", mix="classify=1")
    with load("--rate", "6", key=folder / "web.key"), batch("--rate", "4", "--model", "news"):
        _wait(CALM_S, "low load")
        with load("--rate", "10", key=folder / "web.key"):
            _wait(BUSY_S, "high load")
            kill_replica(stack.service)
            is_good &= _fires(stack, "ErlangshenReplicaLost")
            _wait(BACK_S, "the replica is restarted")
        with load("--concurrency", "40", "--inputs", "8", key=folder / "nightly.key"):
            is_good &= _fires(stack, "ErlangshenOverloaded")
        _wait(AFTER_S, "low load again")
        missing = list(unanswered(stack, WINDOWS))
        print("\n".join((f"expressions without an answer: {len(missing)}", *missing)))
    if arguments.pictures:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
        for name, dashboard in dashboards().items():
            draw(dashboard, stack, Span(start, time.time()), arguments.pictures / f"{name}.png")
    return 0 if is_good and not missing else 1


def _fires(stack: Stack, alert: str) -> bool:
    since = time.monotonic()
    while time.monotonic() < since + ALERT_S:
        if alert in stack.alerts():
            print(f"{alert} reached Alertmanager after {time.monotonic() - since:.0f} s: {stack.alerts()[alert]}")
            return True
        time.sleep(0.5)
    print(f"{alert} did not reach Alertmanager in {ALERT_S} s")
    return False


def _wait(seconds: float, why: str) -> None:
    print(f"{why}: {seconds:g} s", flush=True)
    time.sleep(seconds)


def _parse(argv: Sequence[str]) -> Namespace:
    parser = ArgumentParser(prog="python -m benchmarks.dashboards", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--texts", type=Path, help="real texts to send, as for the bench; made-up ones without")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw the dashboards there")
    return parser.parse_args(argv)


# Pictures: the panels at their places, not an imitation of Grafana

WIDTH_IN, ROW_IN, HEAD_IN = 16.0, 0.38, 0.5
CHINESE = ("WenQuanYi Micro Hei", "Noto Sans CJK SC", "PingFang SC")
"""Labels may be Chinese; the fonts of these that are installed are used."""
MOST_NAMED = 6
LABEL = re.compile(r"\{\{(\w+)\}\}")
SCALED = {"s": "s", "bytes": "B"}
RATES = {"reqps": "req/s", "rowsps": "rows/s", "ops": "ops/s"}


@dataclass(frozen=True, slots=True)
class Span:
    """Unix seconds, drawn in `num_steps`."""

    start: float
    end: float
    num_steps: int = 240

    @property
    def step(self) -> float:
        return (self.end - self.start) / self.num_steps

    @property
    def minutes(self) -> NDArray[np.float64]:
        return np.linspace(0.0, (self.end - self.start) / 60, self.num_steps + 1)


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """One value for each step, nan where there is none."""

    name: str
    labels: Mapping[str, str]
    values: NDArray[np.float64]

    @property
    def last(self) -> float:
        known = self.values[np.isfinite(self.values)]
        return float(known[-1]) if len(known) else float("nan")


def query(stack: Stack, panel: Mapping[str, Any], span: Span) -> list[Series]:
    found = []
    for target in panel["targets"]:
        legend = target.get("legendFormat") or panel["title"]
        for one in stack.query_range(WINDOWS.fill(target["expr"]), span.start, span.end, span.step):
            values, labels = np.full(span.num_steps + 1, np.nan), one["metric"]
            for moment, value in one["values"]:
                values[round((float(moment) - span.start) / span.step)] = float(value)
            name = LABEL.sub(partial(_label, labels), legend).strip()
            found.append(Series(name, labels, np.where(np.isinf(values), np.nan, values)))
    return found


def _label(labels: Mapping[str, str], found: re.Match[str]) -> str:
    return labels.get(found[1], "")


def draw(dashboard: Mapping[str, Any], stack: Stack, span: Span, path: Path) -> None:
    """Queries every panel and writes a PNG."""
    import matplotlib.style
    from matplotlib.figure import Figure
    from matplotlib.font_manager import get_font_names

    panels = dashboard["panels"]
    height = HEAD_IN + ROW_IN * max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    fonts = ["DejaVu Sans", *(name for name in CHINESE if name in get_font_names())]
    style = matplotlib.style.library["dark_background"] | {"font.family": fonts, "font.size": 7}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH_IN, height), dpi=100)
        figure.text(0.01, 1 - HEAD_IN / height / 2, dashboard["title"], fontsize=15, va="center")
        for panel in panels:
            grid = panel["gridPos"]
            top = 1 - (HEAD_IN + ROW_IN * grid["y"]) / height
            if panel["type"] == "row":
                figure.text(0.01, top - ROW_IN / height / 2, panel["title"], fontsize=11, va="center")
                continue
            below = (0.25 + 0.13 * MOST_NAMED if panel["type"] in ("timeseries", "state-timeline") else 0.25) / height
            tall = ROW_IN * grid["h"] / height
            box = ((grid["x"] + 0.9) / 24, top - tall + below, (grid["w"] - 1.2) / 24, tall - below - 0.3 / height)
            axes = figure.add_axes(box)
            axes.set_title(panel["title"], fontsize=9, loc="left")
            DRAW[panel["type"]](axes, panel, query(stack, panel, span), span)
        figure.savefig(path)


def _formatter(unit: str) -> Callable[[float], str]:
    from matplotlib.ticker import EngFormatter

    if unit == "percentunit":
        return "{:.1%}".format
    if unit in SCALED:
        return EngFormatter(SCALED[unit], places=1)
    name = RATES.get(unit, "")
    return lambda value: (f"{value:,.0f} {name}" if abs(value) >= 100 else f"{value:.3g} {name}").strip()


def _unit(panel: Mapping[str, Any]) -> str:
    return str(panel["fieldConfig"]["defaults"].get("unit", "short"))


def _number(axes: Any, panel: Mapping[str, Any], series: Sequence[Series], span: Span) -> None:
    axes.axis("off")
    text = _formatter(_unit(panel))(series[0].last) if series else "-"
    axes.text(0.5, 0.5, text, transform=axes.transAxes, fontsize=20, ha="center", va="center", color="#73bf69")


def _lines(axes: Any, panel: Mapping[str, Any], series: Sequence[Series], span: Span) -> None:
    written = _formatter(_unit(panel))
    ordered = sorted(series, key=lambda one: -np.nanmax(np.nan_to_num(one.values)))
    for number, one in enumerate(ordered):
        label = f"{one.name}   max {written(float(np.nanmax(np.nan_to_num(one.values))))}"
        axes.plot(span.minutes, one.values, lw=1.2, label=label if number < MOST_NAMED else None)
    axes.yaxis.set_major_formatter(lambda value, _: written(value))
    axes.set(xlim=(0, span.minutes[-1]))
    axes.set_ylim(bottom=0)
    axes.grid(color="#2c3235", lw=0.6)
    if ordered:
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.08), fontsize=6.5, frameon=False, borderaxespad=0.6)


def _heat(axes: Any, panel: Mapping[str, Any], series: Sequence[Series], span: Span) -> None:
    """Prometheus' cumulative buckets become one band each."""
    if not series:
        return
    ordered = sorted(series, key=lambda one: float(one.labels["le"]))
    bands = np.clip(np.diff(np.nan_to_num(np.stack([one.values for one in ordered])), axis=0, prepend=0), 0, None)
    axes.pcolormesh(span.minutes, np.arange(len(ordered)), np.sqrt(bands), cmap="turbo", shading="nearest")
    axes.set_yticks(range(0, len(ordered), 2), [one.labels["le"] for one in ordered][::2])


def _table(axes: Any, panel: Mapping[str, Any], series: Sequence[Series], span: Span) -> None:
    """The last value of each series, named by its labels."""
    axes.axis("off")
    written = _formatter(_unit(panel))
    for row, one in enumerate(sorted(series, key=lambda one: -np.nan_to_num(one.last))[:16]):
        name = one.name if one.name != panel["title"] else ", ".join(one.labels.values())
        axes.text(0.0, 1 - (row + 0.5) / 16, f"{name}   {written(one.last)}", transform=axes.transAxes, va="center")


DRAW: Mapping[str, Callable[[Any, Mapping[str, Any], Sequence[Series], Span], None]] = {
    "stat": _number,
    "timeseries": _lines,
    "state-timeline": _lines,
    "heatmap": _heat,
    "bargauge": _table,
    "table": _table,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
