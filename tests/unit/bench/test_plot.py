"""The picture: a PNG of every load that was answered; without matplotlib the way to get it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from service.bench import plot
from service.bench.report import Sample, Window, summarize
from tests.unit.bench.serving import MODELS


def point(load: str, *latencies: float) -> dict[str, Any]:
    samples = [Sample("embed", 0.0, latency, "200", 1, 5) for latency in latencies] or [
        Sample("embed", 0.0, 1.0, "timeout", 1, 0)
    ]
    return {"load": load, "results": summarize(samples, Window(0.0, 1.0))}


def report(*points: dict[str, Any]) -> dict[str, Any]:
    return {"models": MODELS, "answered_by": ["fake"], "method": "closed loop: ...", "points": points}


def test_a_png_is_written(tmp_path: Path) -> None:
    file = tmp_path / "sweep.png"
    plot.plot(report(point("concurrency 1", 0.01), point("concurrency 8", 0.02, 0.03), point("concurrency 99")), file)
    assert file.read_bytes().startswith(b"\x89PNG\r\n")


def test_a_line_is_throughput_and_latency_in_the_order_of_the_sweep() -> None:
    points = [point("concurrency 1", 0.01), point("concurrency 8", 0.03, 0.03)]
    assert plot.plot_line(points, "p50") == ([1.0, 2.0], [10.0, 30.0])
    assert plot.plot_title(report(*points)) == "fake float32: closed loop"


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install -r requirements-bench\.txt"):
        plot.plot(report(), tmp_path / "sweep.png")
