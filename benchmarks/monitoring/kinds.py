"""How each kind of panel is drawn into its part of the picture. Knows no Prometheus."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.ticker import FuncFormatter, MaxNLocator

from benchmarks.monitoring.series import Series, Span
from benchmarks.monitoring.units import written

Panel = Mapping[str, Any]
Answers = Sequence[Sequence[Series]]

PALETTE = ("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#705da0", "#37872d", "#fade2a")
NAMED = {
    "green": "#73bf69",
    "yellow": "#fade2a",
    "orange": "#ff9830",
    "red": "#f2495c",
    "dark-red": "#c4162a",
    "blue": "#5794f2",
    "purple": "#b877d9",
}
FAINT, QUIET, TEXT = "#2c3235", "#8e8e8e", "#ccccdc"
TURBO = LinearSegmentedColormap.from_list(
    "heat", ["#23171b", "#4a58dd", "#2f9df5", "#27d7c4", "#95fb51", "#ffba33", "#e2430d"]
)
MOST_NAMED = 6
LINE = 15


def hexed(color: str) -> str:
    return NAMED.get(color, color)


def unit_of(panel: Panel) -> str:
    return str(panel["fieldConfig"]["defaults"].get("unit", "short"))


def within(axes: Axes, left: float, bottom: float, right: float, top: float) -> Axes:
    """New axes in a part of these, in pixels from its edges."""
    box = axes.get_position()
    figure = axes.get_figure(root=True)
    assert figure is not None, "axes are drawn on a figure"
    width, height = figure.get_size_inches() * figure.dpi
    return figure.add_axes(
        (
            box.x0 + left / width,
            box.y0 + bottom / height,
            box.width - (left + right) / width,
            box.height - (bottom + top) / height,
        ),
        facecolor="none",
    )


def style(axes: Axes, unit: str, span: Span) -> None:
    for side in axes.spines.values():
        side.set_visible(False)
    axes.grid(color=FAINT, lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=QUIET, labelsize=7, length=0)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value, unit)))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} min"))
    axes.set_xlim(0, span.times[-1])


def number(axes: Axes, panel: Panel, answers: Answers, span: Span) -> None:
    series = [one for answer in answers for one in answer]
    value = series[0].last if series else float("nan")
    color = threshold_color(panel, value)
    axes.text(
        0.5, 0.62, written(value, unit_of(panel)), color=color, fontsize=21, fontweight="bold", ha="center", va="center"
    )
    if series:
        graph = within(axes, 0, 0, 0, 72)
        graph.axis("off")
        graph.plot(span.times, series[0].values, color=color, lw=1)
        graph.fill_between(span.times, series[0].values, 0, color=color, alpha=0.2, lw=0)
        graph.set_xlim(0, span.times[-1])


def threshold_color(panel: Panel, value: float) -> str:
    steps = panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [])
    reached = [step["color"] for step in steps if step.get("value") is None or value >= step["value"]]
    return hexed(reached[-1] if reached else "green")


def lines(axes: Axes, panel: Panel, answers: Answers, span: Span) -> None:
    series = sorted((one for answer in answers for one in answer), key=lambda one: -_peak(one))
    colors = [_color(panel, one.name, index) for index, one in enumerate(series)]
    unit, room = unit_of(panel), LINE * (1 + min(len(series), MOST_NAMED))
    graph = within(axes, 52, 18 + room, 4, 4)
    style(graph, unit, span)
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    if custom.get("stacking", {}).get("mode") == "normal" and series:
        stacked = [np.nan_to_num(one.values) for one in series]
        graph.stackplot(span.times, stacked, colors=colors, alpha=0.65, lw=0)
    else:
        for one, color in zip(series, colors, strict=True):
            dashes = (0, (5, 3)) if override(panel, one.name, "custom.lineStyle") else "-"
            graph.plot(span.times, one.values, color=color, lw=1.4, ls=dashes)
    _limits(graph, panel)
    legend(axes, series, colors, unit, room)


def _limits(graph: Axes, panel: Panel) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    is_flat = graph.dataLim.ymax <= 0
    graph.set_ylim(bottom=0, top=defaults.get("max") or (1 if is_flat else None))
    if defaults.get("custom", {}).get("thresholdsStyle", {}).get("mode") == "dashed":
        for step in defaults["thresholds"]["steps"]:
            if step.get("value") is not None and step["value"] < graph.get_ylim()[1] * 1.6:
                graph.axhline(step["value"], color=hexed(step["color"]), lw=1, ls=(0, (6, 4)))


def _peak(one: Series) -> float:
    known = one.values[np.isfinite(one.values)]
    return float(known.max()) if len(known) else 0.0


def _color(panel: Panel, name: str, index: int) -> str:
    chosen = override(panel, name, "color")
    return hexed(chosen["fixedColor"]) if chosen else PALETTE[index % len(PALETTE)]


def override(panel: Panel, name: str, wanted: str) -> Any:
    """What the panel says last of a property of the series of that name; None for nothing."""
    fitting = [
        each["value"]
        for one in panel["fieldConfig"].get("overrides", [])
        if one["matcher"]["id"] == "byRegexp" and re.fullmatch(one["matcher"]["options"], name)
        for each in one["properties"]
        if each["id"] == wanted
    ]
    return fitting[-1] if fitting else None


def legend(axes: Axes, series: Sequence[Series], colors: Sequence[str], unit: str, room: float) -> None:
    part = within(axes, 0, 0, 0, axes.get_window_extent().height - room)
    part.axis("off")
    part.set(xlim=(0, 1), ylim=(room / LINE, 0))
    for x, heading in ((0.84, "mean"), (1.0, "max")):
        part.text(x, 0.5, heading, color=QUIET, fontsize=7, ha="right", va="center")
    for index, (one, color) in enumerate(zip(series[:MOST_NAMED], colors, strict=False)):
        y = index + 1.5
        known = one.values[np.isfinite(one.values)]
        more = len(series) - MOST_NAMED
        name = f"{one.name}   and {more} more" if more > 0 and index == MOST_NAMED - 1 else one.name
        part.plot([0.0, 0.022], [y, y], color=color, lw=3, solid_capstyle="butt")
        part.text(0.03, y, name, fontsize=7.5, va="center")
        for x, value in ((0.84, known.mean() if len(known) else np.nan), (1.0, known.max() if len(known) else np.nan)):
            part.text(x, y, written(float(value), unit), fontsize=7.5, ha="right", va="center")


def heat(axes: Axes, panel: Panel, answers: Answers, span: Span) -> None:
    """Cumulative buckets, as Prometheus keeps them, become one band each."""
    series = sorted((one for answer in answers for one in answer), key=lambda one: float(one.labels["le"]))
    graph = within(axes, 52, 20, 4, 4)
    style(graph, "short", span)
    if not series:
        return
    cumulative = np.nan_to_num(np.stack([one.values for one in series]))
    bands = np.clip(np.diff(cumulative, axis=0, prepend=0), 0, None)
    shown = np.ma.masked_less_equal(bands, 1e-9)
    graph.pcolormesh(
        span.times, np.arange(len(series)) + 0.5, shown, cmap=TURBO, norm=PowerNorm(0.5), shading="nearest"
    )
    unit = panel["options"]["yAxis"].get("unit", "short")
    graph.set_yticks(range(1, len(series) + 1, 2))
    bounds = [written(float(one.labels["le"]), unit) if one.labels["le"] != "+Inf" else "∞" for one in series]
    graph.set_yticklabels(bounds[::2])
    graph.set_ylim(0, len(series))


def bars(axes: Axes, panel: Panel, answers: Answers, _span: Span) -> None:
    series = sorted((one for answer in answers for one in answer), key=lambda one: one.name)
    known = [one for one in series if np.isfinite(one.last)]
    graph = within(axes, 0, 4, 0, 4)
    graph.axis("off")
    most = max((one.last for one in known), default=1.0) or 1.0
    graph.set(xlim=(0, 1), ylim=(max(len(known), 1), 0))
    for index, one in enumerate(known):
        graph.text(0.46, index + 0.5, one.name, fontsize=7.5, ha="right", va="center")
        color = "#5794f2" if one.last / most < 0.66 else "#b877d9"
        graph.barh(index + 0.5, 0.40, 0.6, left=0.48, color=FAINT)
        graph.barh(index + 0.5, 0.40 * one.last / most, 0.6, left=0.48, color=color, alpha=0.85)
        graph.text(
            1.0, index + 0.5, written(one.last, unit_of(panel)), color=color, fontsize=8.5, ha="right", va="center"
        )


def timeline(axes: Axes, panel: Panel, answers: Answers, span: Span) -> None:
    series = [one for answer in answers for one in answer]
    states = {float(value): one for value, one in panel["fieldConfig"]["defaults"]["mappings"][0]["options"].items()}
    graph = within(axes, 130, 44, 4, 10)
    style(graph, "short", span)
    graph.grid(False)
    graph.set(ylim=(len(series), 0), yticks=[index + 0.5 for index in range(len(series))])
    graph.set_yticklabels([one.name for one in series])
    for index, one in enumerate(series):
        for value, state in states.items():
            there = np.where(one.values == value, 1.0, np.nan)
            graph.fill_between(
                span.times,
                index + 0.1,
                np.where(np.isnan(there), index + 0.1, index + 0.9),
                step="post",
                color=hexed(state["color"]),
                lw=0,
            )
    part = within(axes, 0, 0, 0, axes.get_window_extent().height - LINE)
    part.axis("off")
    part.set(xlim=(0, len(states)), ylim=(0, 1))
    for index, state in enumerate(states.values()):
        part.plot([index + 0.05, index + 0.17], [0.5, 0.5], color=hexed(state["color"]), lw=4, solid_capstyle="butt")
        part.text(index + 0.24, 0.5, state["text"], fontsize=7.5, va="center")


def rows(axes: Axes, panel: Panel, answers: Answers, _span: Span) -> None:
    """One column for each query, one row for each set of labels."""
    headings = next(one["options"]["renameByName"] for one in panel["transformations"] if one["id"] == "organize")
    units = {one["matcher"]["options"]: one["properties"][0]["value"] for one in panel["fieldConfig"]["overrides"]}
    labels = [name for name in headings if not name.startswith("Value #")]
    columns = [headings[f"Value #{target['refId']}"] for target in panel["targets"]]
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for column, answer in zip(columns, answers, strict=True):
        for one in answer:
            found.setdefault(tuple(one.labels.get(name, "") for name in labels), {})[column] = one.last
    ordered = sorted(found.items(), key=lambda row: -row[1].get(columns[0], 0.0))
    shown = [row for row in ordered if np.isfinite(row[1].get(columns[0], np.nan))]
    edges = np.linspace(0.005, 0.995, len(labels) + len(columns) + 1)
    axes.set(xlim=(0, 1), ylim=(max(len(shown), 8) + 1, 0))
    for x, heading in zip(edges, [*(headings[name] for name in labels), *columns], strict=False):
        axes.text(x, 0.5, heading, color="#6e9fff", fontsize=8, fontweight="bold", va="center")
    for y, (names, values) in enumerate(shown, start=1):
        axes.axhline(y, color=FAINT, lw=0.6)
        cells = [*names, *(written(values.get(column, np.nan), units[column]) for column in columns)]
        for x, cell in zip(edges, cells, strict=False):
            axes.text(x, y + 0.5, cell, fontsize=8, va="center")


DRAW: Mapping[str, Callable[[Axes, Panel, Answers, Span], None]] = {
    "stat": number,
    "timeseries": lines,
    "heatmap": heat,
    "bargauge": bars,
    "state-timeline": timeline,
    "table": rows,
}
