"""Dashboards: variables are filled in, selectors are found, and every kind of panel is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from benchmarks.dashboards import DRAW, draw
from tests.support.monitoring import Stack, Variables, dashboards, expressions, selectors


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


class FakeStack:
    """Answers every query with the same two buckets."""

    def query_range(self, expr: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        values = [[start + index * step, str(index % 3)] for index in range(round((end - start) / step) + 1)]
        return [{"metric": {"le": bound, "task": "nli", "model": "m"}, "values": values} for bound in ("0.5", "+Inf")]


def test_every_kind_of_panel_is_drawn(tmp_path: Path) -> None:
    shown = [panel for dashboard in dashboards().values() for panel in dashboard["panels"]]
    kinds = {panel["type"]: panel for panel in shown}
    assert set(kinds) == {*DRAW, "row"}
    stack = cast(Stack, FakeStack())
    draw({"title": "All", "panels": list(kinds.values())}, stack, 0.0, 60.0, tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")
