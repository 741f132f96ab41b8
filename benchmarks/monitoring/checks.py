"""What has to be true of dashboards and rules while the service is under load: every expression has an answer."""

from __future__ import annotations

import math
from collections.abc import Iterator

from benchmarks.monitoring.panels import Variables, dashboards, expressions, selectors
from benchmarks.monitoring.stack import Stack


def unanswered(stack: Stack, variables: Variables) -> Iterator[str]:
    """Panels whose expression is refused or answers with no number, and rules that fail or select nothing."""
    for name, dashboard in dashboards().items():
        for title, expr in expressions(dashboard):
            if not _has_numbers(stack, variables.fill(expr)):
                yield f"{name}, {title}: {variables.fill(expr)}"
    for rule in stack.rules():
        if rule["health"] != "ok":
            yield f"{rule['name']}: {rule['health']} {rule.get('lastError', '')}"
        yield from (f"{rule['name']}: {one}" for one in sorted(selectors(rule["query"])) if not stack.query(one))


def _has_numbers(stack: Stack, expr: str) -> bool:
    return any(not math.isnan(float(one["value"][1])) for one in stack.query(expr))


def num_expressions() -> int:
    return sum(len(list(expressions(dashboard))) for dashboard in dashboards().values())
