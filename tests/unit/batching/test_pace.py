"""Budgets and predictions by model, and what the metrics and the log say of them."""

from __future__ import annotations

import logging

import pytest

from service.batching.latency import Cost
from service.batching.pace import UNMEASURED_TOKENS, Pace
from service.domain import Step
from tests.fakes import make_metrics, value

SIZES = [(16, 1), (32, 1), (64, 1), (64, 2), (128, 1), (128, 4)]
FAST, SLOW = Cost(0.008, 13e-6, 0.0), Cost(0.1, 0.0026, 0.0)


def steps(cost: Cost) -> list[Step]:
    return [Step(tokens, rows, cost.of(tokens, rows)) for tokens, rows in SIZES]


def test_a_calibration_sets_the_budget_and_shows_it(caplog: pytest.LogCaptureFixture) -> None:
    metrics = make_metrics()
    pace = Pace(metrics=metrics, target_s=0.5)
    assert pace.budget("m") == UNMEASURED_TOKENS
    assert pace.predict("m", 100, 1) is None
    with caplog.at_level(logging.INFO):
        pace.calibrate("cpu", {"m": steps(SLOW), "n": []})
        pace.calibrate("cpu", {"m": steps(SLOW)})
    assert pace.budget("m") == pytest.approx(153, abs=1)
    assert pace.budget("n") == UNMEASURED_TOKENS, "nothing was measured"
    assert value(metrics, "batch_budget_tokens", model="m") == pace.budget("m")
    assert value(metrics, "predicted_cost_seconds", model="m", of="batch") == pytest.approx(0.1)
    assert value(metrics, "predicted_cost_seconds", model="m", of="token") == pytest.approx(0.0026)
    (record,) = caplog.records
    assert (record.getMessage(), record.__dict__["model"]) == ("batch budget chosen", "m")


def test_a_setting_overrides_the_budget_and_leaves_the_predictions() -> None:
    pace = Pace(metrics=make_metrics(), max_batch_tokens=1000)
    pace.calibrate("cpu", {"m": steps(SLOW)})
    assert pace.budget("m") == 1000
    assert pace.predict("m", 500, 1) == pytest.approx(SLOW.of(500, 1))
    assert pace.predict("m", 5000, 1) == pytest.approx(5 * SLOW.of(1000, 0))


def test_the_slowest_replica_must_bear_the_budget_and_a_restart_measures_anew() -> None:
    pace = Pace(metrics=make_metrics())
    pace.calibrate("cuda:0", {"m": steps(FAST)})
    assert pace.budget("m") > 10_000
    pace.calibrate("cpu", {"m": steps(SLOW)})
    assert pace.budget("m") < 200
    pace.calibrate("cpu", {"m": steps(FAST)})
    assert pace.budget("m") > 10_000
    assert pace.predict("m", 100, 1) == pytest.approx(FAST.of(100, 1))


def test_how_good_predictions_are_is_counted() -> None:
    metrics = make_metrics()
    pace = Pace(metrics=metrics)
    pace.note("m", 100, 1, 0.5)
    assert value(metrics, "prediction_ratio_count", model="m") == 0, "there was no prediction"
    pace.note("m", 100, 1, 1.0)
    assert value(metrics, "prediction_ratio_sum", model="m") == 2.0
    assert pace.predict("m", 100, 1) == pytest.approx(0.75, abs=0.05)
