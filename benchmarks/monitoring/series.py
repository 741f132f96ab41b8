"""What a panel's query answers, as named series of numbers over a span of time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.monitoring.panels import Variables
from benchmarks.monitoring.stack import Stack

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Span:
    """Unix seconds. The steps are so many that a line is smooth in a picture."""

    start: float
    end: float
    label: str
    num_steps: int = 240

    @property
    def step(self) -> float:
        return (self.end - self.start) / self.num_steps

    @property
    def times(self) -> Values:
        """Minutes since the start."""
        return np.linspace(0.0, (self.end - self.start) / 60, self.num_steps + 1)


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """`values` has one number for each of the span's times, nan where there is none."""

    name: str
    labels: Mapping[str, str]
    values: Values

    @property
    def last(self) -> float:
        known = self.values[np.isfinite(self.values)]
        return float(known[-1]) if len(known) else float("nan")


def ask(
    stack: Stack, target: Mapping[str, Any], panel: Mapping[str, Any], span: Span, variables: Variables
) -> list[Series]:
    answer = stack.query_range(variables.fill(target["expr"]), span.start, span.end, span.step)
    return [_series(one, target.get("legendFormat", ""), panel["title"], span) for one in answer]


def _series(one: Mapping[str, Any], legend: str, title: str, span: Span) -> Series:
    values = np.full(span.num_steps + 1, np.nan)
    for moment, value in one["values"]:
        values[round((float(moment) - span.start) / span.step)] = float(value)
    labels = one["metric"]
    name = re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend) if legend else title
    return Series(name.strip(), labels, np.where(np.isinf(values), np.nan, values))
