"""Tries the dashboards and alerts with a real Prometheus and Alertmanager: `make check-monitoring`.

    python -m benchmarks.dashboards [--pictures docs/dashboards]

A service with two models and API keys is scraped under load. A replica is killed and the service is overloaded; both
alerts have to reach Alertmanager. Then every expression of every panel and rule has to have an answer. With --pictures
the dashboards are drawn from what Prometheus has stored: the panels at their places, not an imitation of Grafana.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections import ChainMap, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.ticker import EngFormatter
from PIL import Image

from benchmarks.peers.checkpoint import make_checkpoint
from tests.support.monitoring import (
    TOOLS,
    Stack,
    Variables,
    dashboards,
    kill_replica,
    loading,
    monitored,
    unanswered,
    use_label_set,
)

CALM_S, BUSY_S, BACK_S, AFTER_S, SCRAPED_S, ALERT_S = 75, 45, 20, 45, 5, 240
WINDOWS = Variables(window="15s", whole="5m", over="45s", before="1m")

WIDTH_IN, ROW_IN, HEAD_IN = 16.0, 0.38, 0.5
FONTS = ("DejaVu Sans", "WenQuanYi Micro Hei", "Noto Sans CJK SC", "PingFang SC")  # labels may be Chinese
NUM_STEPS, MOST_NAMED = 240, 6

Panel = Mapping[str, Any]
Array = np.ndarray[Any, np.dtype[np.float64]]


class Series(NamedTuple):
    """`values` has one number for each step, nan where there is none; `target` is the index of its expression."""

    name: str
    labels: Mapping[str, str]
    target: int
    values: Array

    @property
    def last(self) -> float:
        return float(self.values[np.isfinite(self.values)][-1])


def main(argv: Sequence[str]) -> int:
    parser = ArgumentParser(prog="python -m benchmarks.dashboards", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--texts", type=Path, help="real texts to send, as for the bench; made-up ones without")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw the dashboards there")
    arguments = parser.parse_args(argv)
    if absent := ", ".join(tool for tool in TOOLS if shutil.which(tool) is None):
        print(f"skipped: not installed: {absent} (on Debian: apt install prometheus prometheus-alertmanager)")
        return 0
    with tempfile.TemporaryDirectory(prefix="monitoring-") as name:
        models = ("--model", "mini=mini", "--model", f"news={make_checkpoint(Path(name) / 'news')}")
        with monitored(Path(name), *models) as stack:
            return tour(stack, Path(name), arguments)


def tour(stack: Stack, folder: Path, arguments: Namespace) -> int:
    start = time.time()
    load = partial(loading, stack.service, texts=arguments.texts)
    batch = partial(load, key=folder / "batch.key", mix="classify=1")
    with load("--rate", "6", key=folder / "web.key"), batch("--rate", "4", "--model", "news"):
        wait(CALM_S, "low load")
        with load("--rate", "10", key=folder / "web.key"):
            wait(BUSY_S, "high load")
            kill_replica(stack.service)
            is_good = wait(ALERT_S, "ErlangshenReplicaLost", stack.alerts)
            wait(BACK_S, "the replica is restarted")
        with load("--concurrency", "40", "--inputs", "8", key=folder / "nightly.key"):
            is_good &= wait(ALERT_S, "ErlangshenOverloaded", stack.alerts)
        wait(AFTER_S, "low load again")
        for turn in range(3):
            use_label_set(stack.service, folder / "owner.key", turn)
            wait(SCRAPED_S, "scrapes of a stored label set")
        missing = list(unanswered(stack, WINDOWS))
        print("\n".join((f"expressions without an answer: {len(missing)}", *missing)))
    for name, dashboard in (dashboards() if arguments.pictures else {}).items():
        draw(dashboard, stack, start, time.time(), arguments.pictures / f"{name}.png")
    return 0 if is_good and not missing else 1


def wait(seconds: float, what: str, found: Callable[[], Mapping[str, object]] = dict) -> bool:
    """Until `what` is found; False where it was not within these seconds."""
    print(f"{what}: {seconds:g} s at most", flush=True)
    since = time.monotonic()
    while (waited := time.monotonic() - since) < seconds:
        if here := found().get(what):
            print(f"{what} after {waited:.0f} s: {here}", flush=True)
            return True
        time.sleep(0.5)
    return False


def query(stack: Stack, panel: Panel, start: float, end: float) -> list[Series]:
    found, step = [], (end - start) / NUM_STEPS
    for number, target in enumerate(panel["targets"]):
        legend = (target.get("legendFormat") or "").replace("{{", "{").replace("}}", "}")
        for one in stack.query_range(WINDOWS.fill(target["expr"]), start, end, step):
            values = np.full(NUM_STEPS + 1, np.nan)
            for moment, value in one["values"]:
                values[round((float(moment) - start) / step)] = float(value)
            values[np.isinf(values)] = np.nan
            name = legend.format_map(defaultdict(str, one["metric"])).strip()
            if np.isfinite(values).any():
                found.append(Series(name, one["metric"], number, values))
    return found


def draw(dashboard: Mapping[str, Any], stack: Stack, start: float, end: float, path: Path) -> None:
    """Queries every panel from `start` to `end` (Unix seconds) and writes a PNG."""
    panels, minutes = dashboard["panels"], np.linspace(0.0, (end - start) / 60, NUM_STEPS + 1)
    height = HEAD_IN + ROW_IN * max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    fonts = [name for name in FONTS if name in get_font_names()]
    with matplotlib.rc_context(matplotlib.style.library["dark_background"] | {"font.family": fonts, "font.size": 7}):
        figure = Figure(figsize=(WIDTH_IN, height), dpi=100)
        figure.text(0.01, 1 - HEAD_IN / height / 2, f"{dashboard['title']} (time in minutes)", fontsize=15, va="center")
        for panel in panels:
            grid = panel["gridPos"]
            top = 1 - (HEAD_IN + ROW_IN * grid["y"]) / height
            if panel["type"] == "row":
                figure.text(0.01, top - ROW_IN / height / 2, panel["title"], fontsize=11, va="center")
                continue
            below = (0.25 + 0.16 * MOST_NAMED * (DRAW[panel["type"]] is lines)) / height
            tall = ROW_IN * grid["h"] / height
            box = ((grid["x"] + 1.2) / 24, top - tall + below, (grid["w"] - 1.5) / 24, tall - below - 0.3 / height)
            axes = figure.add_axes(box)
            axes.set_title(panel["title"], fontsize=9, loc="left")
            if series := query(stack, panel, start, end):
                DRAW[panel["type"]](axes, panel, series, minutes)
            else:
                axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center")
        figure.savefig(path)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)  # a third of the size


def formatter(panel: Panel, unit: str = "") -> Callable[[float], str]:
    """`unit` is Grafana's name; by default that of the panel. A panel of states has names for its numbers."""
    defaults = panel["fieldConfig"]["defaults"]
    unit = unit or defaults.get("unit", "")
    if states := defaults.get("mappings"):
        return lambda value: states[0]["options"].get(f"{value:g}", {}).get("text", "")
    if known := {"percentunit": "{:.1%}".format, "s": EngFormatter("s", 1), "bytes": EngFormatter("B", 1)}.get(unit):
        return known
    name = {"reqps": "req/s", "rowsps": "rows/s", "ops": "ops/s"}.get(unit, "")
    return lambda value: (f"{value:,.0f} {name}" if abs(value) >= 100 else f"{value:.3g} {name}").strip()


def stat(axes: Any, panel: Panel, series: Sequence[Series], minutes: Array) -> None:
    axes.axis("off")
    axes.text(0.5, 0.5, formatter(panel)(series[0].last), transform=axes.transAxes, fontsize=20, ha="center")


def lines(axes: Any, panel: Panel, series: Sequence[Series], minutes: Array) -> None:
    written = formatter(panel)
    largest = [float(np.nan_to_num(one.values).max()) for one in series]
    for rank, index in enumerate(np.argsort(largest)[::-1]):
        label = f"{series[index].name}   max {written(largest[index])}" if rank < MOST_NAMED else None
        axes.plot(minutes, series[index].values, lw=1.2, label=label)
    axes.yaxis.set_major_formatter(lambda value, _: written(value))
    axes.set(xlim=(0, minutes[-1]), ylim=(0, 1.08 * max(largest) or None))
    axes.grid(color="#2c3235", lw=0.6)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.08), fontsize=6.5, frameon=False, borderaxespad=0.6)


def heat(axes: Any, panel: Panel, series: Sequence[Series], minutes: Array) -> None:
    """Prometheus' cumulative buckets become one band each."""
    ordered = sorted(series, key=lambda one: float(one.labels["le"]))
    bands = np.clip(np.diff(np.nan_to_num(np.stack([one.values for one in ordered])), axis=0, prepend=0), 0, None)
    axes.pcolormesh(minutes, np.arange(len(ordered)), np.sqrt(bands), cmap="turbo", shading="nearest")
    axes.set_yticks(range(0, len(ordered), 2), [one.labels["le"] for one in ordered][::2])


def table(axes: Any, panel: Panel, series: Sequence[Series], minutes: Array) -> None:
    """The last value of each series: a row for each set of labels, a column for each expression."""
    axes.axis("off")
    renamed = ChainMap(*(one["options"].get("renameByName", {}) for one in panel.get("transformations", ())))
    columns = [renamed.get(f"Value #{target['refId']}", "") for target in panel["targets"]]
    units = {one["matcher"]["options"]: one["properties"][0]["value"] for one in panel["fieldConfig"]["overrides"]}
    rows: dict[str, list[str]] = defaultdict(lambda: [""] * len(columns))
    for one in series:
        written = formatter(panel, units.get(columns[one.target], ""))(one.last)
        rows[one.name or " ".join(one.labels.values())][one.target] = written
    cells, left = list(rows.values()), 3.2 / panel["gridPos"]["w"]  # the names of the rows stand on the left
    axes.table(cells, rowLabels=list(rows), colLabels=columns, bbox=(left, 0, 1 - left, 1), edges="horizontal")


DRAW = {"stat": stat, "timeseries": lines, "state-timeline": lines, "heatmap": heat, "bargauge": table, "table": table}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
