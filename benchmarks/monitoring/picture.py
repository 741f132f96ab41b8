"""A picture of a dashboard, laid out as Grafana does it, from the numbers that a Prometheus gives.

No Grafana is needed and none is imitated to the pixel: what matters is which panels there are and what they show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from benchmarks.monitoring import kinds
from benchmarks.monitoring.panels import Variables
from benchmarks.monitoring.series import Span, ask
from benchmarks.monitoring.stack import Stack

COLUMN, UNIT, GAP, MARGIN, TITLE, HEAD = 66, 38, 8, 12, 26, 46
"""Pixels: of a column, of a unit of height, between panels, around all, of a panel's title, above the panels."""
DPI = 100
BACKGROUND, PANEL, BORDER, TEXT = "#111217", "#181b1f", "#2c3235", "#ccccdc"
CHINESE = ("WenQuanYi Micro Hei", "Noto Sans CJK SC", "PingFang SC")
"""Labels may be Chinese: the fonts that have the characters, of which those are used that are installed."""


@dataclass(frozen=True, slots=True)
class Box:
    """Pixels from the left top corner."""

    left: float
    top: float
    width: float
    height: float


def draw(dashboard: Mapping[str, Any], stack: Stack, span: Span, variables: Variables, path: Path) -> None:
    """Asks for every panel and writes a PNG."""
    panels = dashboard["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    width, height = 24 * COLUMN + 2 * MARGIN, rows * UNIT + HEAD + MARGIN
    fonts = ["DejaVu Sans", *(name for name in CHINESE if name in get_font_names())]
    with mpl.rc_context({"font.family": fonts, "text.color": TEXT, "axes.labelcolor": TEXT, "font.size": 8}):
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=BACKGROUND)
        page = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        page.axis("off")
        page.text(MARGIN, HEAD / 2, dashboard["title"], fontsize=15, fontweight="bold", va="center")
        page.text(width - MARGIN, HEAD / 2, span.label, fontsize=9, va="center", ha="right", color="#8e8e8e")
        for panel in panels:
            _panel(figure, page, panel, _box(panel["gridPos"]), stack, span, variables)
        figure.savefig(path, dpi=DPI, facecolor=BACKGROUND)
    with Image.open(path) as drawn:  # 256 colours are enough, and a third of the bytes
        drawn.convert("RGB").quantize(256).save(path, optimize=True)


def _box(grid: Mapping[str, int]) -> Box:
    return Box(MARGIN + grid["x"] * COLUMN, HEAD + grid["y"] * UNIT, grid["w"] * COLUMN - GAP, grid["h"] * UNIT - GAP)


def _panel(
    figure: Figure, page: Axes, panel: Mapping[str, Any], box: Box, stack: Stack, span: Span, variables: Variables
) -> None:
    if panel["type"] == "row":
        page.text(box.left, box.top + UNIT / 2, panel["title"], fontsize=11, fontweight="bold", va="center")
        return
    frame = FancyBboxPatch(
        (box.left, box.top), box.width, box.height, boxstyle="round,pad=0,rounding_size=3", fc=PANEL, ec=BORDER, lw=0.8
    )
    page.add_patch(frame)
    page.text(box.left + 10, box.top + 14, panel["title"], fontsize=9, fontweight="bold", va="center")
    answers = [ask(stack, target, panel, span, variables) for target in panel["targets"]]
    inner = Box(box.left + 10, box.top + TITLE, box.width - 20, box.height - TITLE - 8)
    kinds.DRAW[panel["type"]](_axes(figure, inner), panel, answers, span)


def _axes(figure: Figure, box: Box) -> Axes:
    width, height = figure.get_size_inches() * DPI
    bottom = height - box.top - box.height
    axes = figure.add_axes(
        (box.left / width, bottom / height, box.width / width, box.height / height), facecolor="none"
    )
    axes.axis("off")
    return axes
