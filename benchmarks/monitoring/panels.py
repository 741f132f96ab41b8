"""The dashboards as Grafana would read them: their panels, and their expressions with the variables filled in.

Knows the committed JSON, not the code that makes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.monitoring.stack import ROOT

DASHBOARDS = ROOT / "docker/grafana/dashboards"
SELECTOR = re.compile(r"(?<![\w:])(?:erlangshen[\w:]*|process_\w+|up)(?:\{[^}]*\})?")
"""A metric with its labels, in an expression."""


@dataclass(frozen=True, slots=True)
class Variables:
    """What stands for Grafana's variables in a run that is minutes long."""

    window: str = "20s"
    whole: str = "2m"
    over: str = "10s"
    before: str = "10s"
    low: str = "0.6"

    def fill(self, expr: str) -> str:
        named = {
            "job": "erlangshen",
            "__rate_interval": self.window,
            "__range": self.whole,
            "over": self.over,
            "before": self.before,
            "low": self.low,
        }
        return re.sub(r"\$(\w+)", lambda found: named.get(found[1], ".*"), expr)


def dashboards() -> dict[str, dict[str, Any]]:
    """By the name of the file."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}


def expressions(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The title of a panel with each of its expressions."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def selectors(expr: str) -> set[str]:
    return set(SELECTOR.findall(expr))
