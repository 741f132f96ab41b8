"""Totals of a server's metrics page, and what a server computed between two readings."""

from __future__ import annotations

import pytest
from prometheus_client import generate_latest

from service.tools.bench.server_metrics import not_computed, per_batch, sum_totals
from tests.fakes import make_metrics
from tests.unit.tools.bench.serving import METRICS


def test_a_page_of_the_service_has_all_totals() -> None:
    metrics = make_metrics(("m", "n"))
    metrics.batch_computed("m", "cpu", rows=3, failed_rows=0, tokens=30, seconds=0.5)
    metrics.looked_up("results", "m", hits=1, misses=0)
    of_batches = {"batches": 1.0, "rows": 3.0, "tokens": 30.0, "compute_s": 0.5}
    page = generate_latest(metrics.registry).decode()
    assert sum_totals(page) == of_batches | {"shared_rows": 0.0, "cache_hit_rows": 1.0}


def test_totals_are_summed_over_models() -> None:
    page = METRICS.format(batches=3.0, rows=6.0, tokens=60.0, seconds=1.5, shared=2.0, kept=1.0)
    of_batches = {"batches": 3.0, "rows": 6.0, "tokens": 60.0, "compute_s": 1.5}
    assert sum_totals(page) == of_batches | {"shared_rows": 2.0, "cache_hit_rows": 1.0}


def test_a_page_in_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="not in Prometheus' text format"):
        sum_totals("<html>")


def test_rows_not_computed_are_the_growth_of_their_totals() -> None:
    before, after = {"batches": 1.0, "shared_rows": 2.0}, {"batches": 3.0, "shared_rows": 7.0, "cache_hit_rows": 4.0}
    assert not_computed(before, after) == {"shared_rows": 5.0, "cache_hit_rows": 4.0}
    assert not_computed({}, after) is None


def test_rows_per_batch_come_from_the_growth_of_the_totals() -> None:
    before, after = {"batches": 10.0, "rows": 30.0, "seconds": 5.0}, {"batches": 14.0, "rows": 62.0, "seconds": 7.5}
    assert per_batch(before, after) == {"batches": 4.0, "mean_rows": 8.0, "seconds": 2.5}
    assert per_batch(after, after) is None
    assert per_batch({}, {}) is None
