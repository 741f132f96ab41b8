"""Numbers of a run: exact percentiles, and batches out of what the server's totals grew by."""

from __future__ import annotations

import pytest

from service.bench.report import Sample, summarize
from service.bench.server import per_batch, totals
from tests.unit.bench.serving import METRICS


def test_percentiles_are_exact() -> None:
    samples = [Sample("mrc", 0.0, number / 1000, "200", 1, 7) for number in range(101)]
    row = summarize([*samples, Sample("mrc", 0.0, 9.0, "timeout", 1, 0)], 10.0)["mrc"]
    assert row["latency_ms"] == {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "mean": 50.0, "max": 100.0}
    assert row["outcomes"] == {"200": 101, "timeout": 1}
    assert row["tokens_per_s"] == pytest.approx(70.7)


def test_totals_are_summed_over_models() -> None:
    page = METRICS.format(batches=3.0, rows=6.0, tokens=60.0, seconds=1.5).splitlines()
    assert totals(page) == {"batches": 3.0, "rows": 6.0, "tokens": 60.0, "compute_s": 1.5}


def test_rows_per_batch_come_from_what_the_totals_grew_by() -> None:
    before, after = {"batches": 10.0, "rows": 30.0, "seconds": 5.0}, {"batches": 14.0, "rows": 62.0, "seconds": 7.5}
    assert per_batch(before, after) == {"batches": 4.0, "mean_rows": 8.0, "seconds": 2.5}
    assert per_batch(after, after) is None
    assert per_batch({}, {}) is None
