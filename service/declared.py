"""How a metric is declared: with its unit and help, on one registry, and listed for its documentation.

Knows none of the service's metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Literal, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

PREFIX = "erlangshen"

M = TypeVar("M", Counter, Gauge, Histogram)


@dataclass(frozen=True, slots=True)
class Entry:
    """One declared metric, as its documentation shows it; `name` is the name that is exposed."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...]


class Declared:
    """The registry and the list of what was declared on it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # They would be a second series beside every counter, undocumented, and Prometheus has no use for them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry
        self._entries: list[Entry] = []

    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        self._entries.append(Entry(f"{PREFIX}_{name}_total", "counter", text, labels))
        return _remembering(Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry))

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = (), unit: str = "") -> Gauge:
        self._entries.append(Entry(_exposed(name, unit), "gauge", text, labels))
        return _remembering(Gauge(f"{PREFIX}_{name}", text, labels, unit=unit, registry=self.registry))

    def _histogram(
        self, name: str, text: str, buckets: Sequence[float], labels: tuple[str, ...] = (), unit: str = ""
    ) -> Histogram:
        self._entries.append(Entry(_exposed(name, unit), "histogram", text, labels))
        histogram = Histogram(f"{PREFIX}_{name}", text, labels, unit=unit, registry=self.registry, buckets=buckets)
        return _remembering(histogram)


def _remembering(metric: M) -> M:
    """Finds a series again by a look into a table: the library makes strings and takes a lock each time, which for the
    dozen series that a request counts in is a twentieth of what the request costs."""
    metric.labels = cache(metric.labels)  # type: ignore[method-assign]
    return metric


def _exposed(name: str, unit: str) -> str:
    return f"{PREFIX}_{name}_{unit}" if unit else f"{PREFIX}_{name}"


def make(metric: Counter | Gauge | Histogram, *values: Sequence[str]) -> None:
    """Creates the series of every combination of label values."""
    for labels in product(*values):
        metric.labels(*labels)
