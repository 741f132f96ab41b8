"""Numbers as Grafana writes them: with the unit of a panel, three digits and no more."""

from __future__ import annotations

import math

TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
SIZES = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))
PLAIN = ((1e9, "G"), (1e6, "M"), (1e3, "K"), (1.0, ""))
PER_SECOND = {"reqps": "req/s", "rowsps": "rows/s", "ops": "ops/s"}


def written(value: float, unit: str) -> str:
    if not math.isfinite(value):
        return "-"
    if unit == "percentunit":
        return f"{_digits(value * 100)}%"
    if unit == "s":
        return _scaled(value, TIMES, " ")
    if unit == "bytes":
        return _scaled(value, SIZES, " ")
    return f"{_scaled(value, PLAIN)} {PER_SECOND.get(unit, '')}".strip()


def _scaled(value: float, steps: tuple[tuple[float, str], ...], space: str = "") -> str:
    for size, name in steps:
        if abs(value) >= size:
            return f"{_digits(value / size)}{space}{name}"
    size, name = steps[-1]
    return "0" if value == 0 else f"{_digits(value / size)}{space}{name}"


def _digits(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}".rstrip("0").rstrip(".") if abs(value) < 10 else f"{value:.1f}".removesuffix(".0")
