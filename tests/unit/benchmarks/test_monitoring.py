"""What tries the dashboards: variables, selectors, numbers as they are written, and a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.monitoring.kinds import DRAW
from benchmarks.monitoring.panels import Variables, dashboards, expressions, selectors
from benchmarks.monitoring.picture import draw
from benchmarks.monitoring.series import Span
from benchmarks.monitoring.stack import Stack
from benchmarks.monitoring.units import written


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0, "s", "0"),
        (0.0000125, "s", "12.5 µs"),
        (0.25, "s", "250 ms"),
        (2.5, "s", "2.5 s"),
        (0.0625, "percentunit", "6.25%"),
        (1.0, "percentunit", "100%"),
        (1536.0, "bytes", "1.5 KiB"),
        (12_345.0, "short", "12.3K"),
        (42.0, "reqps", "42 req/s"),
        (-0.5, "percentunit", "-50%"),
        (math.nan, "s", "-"),
    ],
)
def test_numbers_as_people_read_them(value: float, unit: str, text: str) -> None:
    assert written(value, unit) == text


def test_every_variable_of_the_dashboards_is_filled_in() -> None:
    filled = [Variables().fill(expr) for dashboard in dashboards().values() for _, expr in expressions(dashboard)]
    assert len(filled) > 90
    assert not any("$" in expr for expr in filled)
    assert Variables(window="9s").fill('rate(a{job=~"$job",task=~"$task"}[$__rate_interval])') == (
        'rate(a{job=~"erlangshen",task=~".*"}[9s])'
    )


def test_selectors_of_an_expression() -> None:
    expr = 'sum by (job) (rate(erlangshen_a_total{code="1"}[5m])) / erlangshen:b:rate5m > 0 or up{job="x"} == 0'
    assert selectors(expr) == {'erlangshen_a_total{code="1"}', "erlangshen:b:rate5m", 'up{job="x"}'}


class FakeStack(Stack):
    """Answers every question with the same two buckets."""

    def query_range(self, expr: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        values = [[start + index * step, str(index % 3)] for index in range(round((end - start) / step) + 1)]
        return [{"metric": {"le": bound, "task": "nli", "model": "m"}, "values": values} for bound in ("0.5", "+Inf")]


def test_every_kind_of_panel_is_drawn(tmp_path: Path) -> None:
    shown = [panel for dashboard in dashboards().values() for panel in dashboard["panels"]]
    kinds = {panel["type"]: panel for panel in shown}
    assert set(kinds) == {*DRAW, "row"}
    stack, span = FakeStack("", "", "", 0), Span(0.0, 60.0, "then", 12)
    draw({"title": "All", "panels": list(kinds.values())}, stack, span, Variables(), tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")
