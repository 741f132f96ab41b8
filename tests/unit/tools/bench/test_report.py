"""Reports: exact percentiles, rates of the window, and the plot."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from service.tools.bench import report
from service.tools.bench.report import Sample, Window, format_report, summarize
from tests.unit.tools.bench.serving import MODELS


def test_percentiles_are_exact() -> None:
    samples = [Sample("mrc", 0.0, number / 1000, "200", 1, 7) for number in range(101)]
    row = summarize([*samples, Sample("mrc", 0.0, 9.0, "timeout", 1, 0)], Window(0.0, 10.0))["mrc"]
    assert row["latency_ms"] == {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "mean": 50.0, "max": 100.0}
    assert row["outcomes"] == {"200": 101, "timeout": 1}
    assert row["tokens_per_s"] == pytest.approx(70.7)


def served(due_s: list[float], each_s: float, num_tokens: int = 5) -> list[Sample]:
    """Samples of a server that answers one request after the other."""
    samples, free_s = [], -1e9
    for due in due_s:
        free_s = max(free_s, due) + each_s
        samples.append(Sample("embed", due, free_s - due, "200", 2, num_tokens))
    return samples


def test_an_open_loop_past_capacity_reports_the_rate_of_answers() -> None:
    """Ten requests per second for ten seconds, of which four per second are answered."""
    row = summarize(served([number / 10 for number in range(100)], 0.25), Window(0.0, 10.0))["all"]
    assert (row["offered_per_s"], row["requests_per_s"], row["inputs_per_s"], row["tokens_per_s"]) == (10, 4, 8, 20)
    assert (row["requests"], row["ended"], row["outcomes"]) == (100, 40, {"200": 100})
    assert row["latency_ms"]["max"] == pytest.approx(1000 * (25 - 9.9)), "over all requests that were due"


def test_a_request_of_the_warm_up_counts_when_it_ends_in_the_window() -> None:
    """A closed loop of one client whose requests take three of the four seconds that are measured."""
    samples = [Sample("embed", start, 3.0, "200", 1, 5) for start in (0.0, 3.0, 6.0)]
    row = summarize(samples, Window(2.0, 6.0))["all"]
    assert (row["ended"], row["requests_per_s"]) == (2, 0.5)
    assert (row["requests"], row["latency_ms"]["p50"]) == (2, 3000.0)


def test_a_run_in_which_no_request_ended_is_reported() -> None:
    results = summarize([Sample("embed", 1.0, 30.0, "200", 8, 99)], Window(0.0, 6.0))
    point = {"load": "concurrency 256", "results": results, "batches": None, "not_computed": None}
    report = {"method": "", "corpus": {"about": ""}, "left_out": {}, "points": [point], "duration_s": 6.0}
    assert "concurrency 256: no request ended in the 6 s that were measured" in format_report(report)
    assert results["all"]["requests_per_s"] == 0


def test_a_failure_does_not_count_as_throughput() -> None:
    row = summarize([Sample("embed", 0.0, 1.0, "429", 1, 0)], Window(0.0, 2.0))["all"]
    assert (row["ended"], row["requests_per_s"], row["offered_per_s"]) == (1, 0.0, 0.5)


def point(load: str, *latencies: float) -> dict[str, Any]:
    samples = [Sample("embed", 0.0, latency, "200", 1, 5) for latency in latencies] or [
        Sample("embed", 0.0, 1.0, "timeout", 1, 0)
    ]
    return {"load": load, "results": summarize(samples, Window(0.0, 1.0))}


def made_report(*points: dict[str, Any]) -> dict[str, Any]:
    return {"models": MODELS, "answered_by": ["fake"], "method": "closed loop: ...", "points": points}


def test_a_png_is_written(tmp_path: Path) -> None:
    file = tmp_path / "sweep.png"
    report.plot(
        made_report(point("concurrency 1", 0.01), point("concurrency 8", 0.02, 0.03), point("concurrency 99")), file
    )
    assert file.read_bytes().startswith(b"\x89PNG\r\n")


def test_latency_curve_has_throughput_and_latency_in_the_order_of_the_sweep() -> None:
    points = [point("concurrency 1", 0.01), point("concurrency 8", 0.03, 0.03)]
    assert report.latency_curve(points, "p50") == ([1.0, 2.0], [10.0, 30.0])
    assert report.plot_title(made_report(*points)) == "fake float32: closed loop"


def test_the_error_without_matplotlib_names_the_install_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install -r requirements/bench\.txt"):
        report.plot(made_report(), tmp_path / "sweep.png")
