"""Budgets and predictions by model, and what the metrics and the log say of them."""

from __future__ import annotations

import logging

import pytest

from service.batching.budget import LEAST_TOKENS
from service.batching.latency import Cost
from service.batching.pace import UNMEASURED_TOKENS, Pace
from service.domain import Step
from tests.fakes import make_metrics, value

MODEL_SIZES = [(16, 1), (32, 1), (64, 1), (64, 2), (128, 1), (128, 4)]
FAST, SLOW = Cost(0.008, 13e-6, 0.0), Cost(0.1, 0.0026, 0.0)


def model_steps(cost: Cost) -> list[Step]:
    return [Step(tokens, rows, cost.of(tokens, rows)) for tokens, rows in MODEL_SIZES]


def test_a_calibration_sets_the_budget_and_shows_it(caplog: pytest.LogCaptureFixture) -> None:
    metrics = make_metrics()
    pace = Pace(metrics=metrics, target_s=0.5)
    assert pace.budget("m") == UNMEASURED_TOKENS
    assert pace.predict("m", 100, 1) is None
    with caplog.at_level(logging.INFO):
        pace.calibrate("cpu", "m", model_steps(SLOW))
        pace.calibrate("cpu", "n", [])
        pace.calibrate("cpu", "m", model_steps(SLOW))
    assert pace.budget("m") == pytest.approx(153, abs=1)
    assert pace.budget("n") == UNMEASURED_TOKENS, "nothing was measured"
    assert value(metrics, "batch_budget_tokens", model="m") == pace.budget("m")
    assert value(metrics, "predicted_cost_seconds", model="m", of="batch") == pytest.approx(0.1)
    assert value(metrics, "predicted_cost_seconds", model="m", of="token") == pytest.approx(0.0026)
    (record,) = caplog.records
    assert (record.getMessage(), record.__dict__["model"]) == ("batch budget chosen", "m")


def test_a_setting_overrides_the_budget_and_leaves_the_predictions() -> None:
    pace = Pace(metrics=make_metrics(), max_batch_tokens=1000)
    pace.calibrate("cpu", "m", model_steps(SLOW))
    assert pace.budget("m") == 1000
    assert pace.predict("m", 500, 1) == pytest.approx(SLOW.of(500, 1))
    assert pace.predict("m", 5000, 1) == pytest.approx(5 * SLOW.of(1000, 0))


def test_the_slowest_replica_must_bear_the_budget_and_a_restart_measures_anew() -> None:
    pace = Pace(metrics=make_metrics())
    pace.calibrate("cuda:0", "m", model_steps(FAST))
    assert pace.budget("m") > 10_000
    pace.calibrate("cpu", "m", model_steps(SLOW))
    assert pace.budget("m") < 200
    pace.calibrate("cpu", "m", model_steps(FAST))
    assert pace.budget("m") > 10_000
    assert pace.predict("m", 100, 1) == pytest.approx(FAST.of(100, 1))


def test_a_device_that_becomes_slower_gets_smaller_batches_and_larger_ones_when_it_recovers() -> None:
    metrics = make_metrics()
    pace = Pace(metrics=metrics, target_s=0.5)
    pace.calibrate("cpu", "m", model_steps(SLOW))
    usual = pace.budget("m")
    serve(pace, SLOW.stretched(1.5))
    assert pace.budget("m") == pytest.approx((0.5 - 0.15) / 0.0039, abs=1)
    assert value(metrics, "batch_budget_tokens", model="m") == pace.budget("m")
    serve(pace, SLOW)
    assert pace.budget("m") == pytest.approx(usual, abs=1)


def test_batches_of_one_size_say_nothing_of_the_knee() -> None:
    pace = Pace(metrics=make_metrics(), target_s=10.0)
    pace.calibrate("cuda:0", "m", model_steps(FAST))
    usual = pace.budget("m")
    serve(pace, FAST)
    assert pace.budget("m") == pytest.approx(usual, rel=1e-3)


def serve(pace: Pace, cost: Cost) -> None:
    for _ in range(200):
        pace.note("m", 100, 1, cost.of(100, 1))


def test_how_good_predictions_are_is_counted() -> None:
    metrics = make_metrics()
    pace = Pace(metrics=metrics)
    pace.note("m", 100, 1, 0.5)
    assert value(metrics, "prediction_ratio_count", model="m") == 0, "there was no prediction"
    pace.note("m", 100, 1, 1.0)
    assert value(metrics, "prediction_ratio_sum", model="m") == 2.0
    assert pace.predict("m", 100, 1) == pytest.approx(0.75, abs=0.05)


def test_a_batch_that_found_no_memory_lowers_the_budget_and_a_calibration_does_not_raise_it() -> None:
    metrics = make_metrics()
    pace = Pace(metrics=metrics)
    pace.calibrate("cuda:0", "m", model_steps(FAST))
    pace.ran_out("m", 3000)
    assert pace.budget("m") == value(metrics, "batch_budget_tokens", model="m") == 3000
    pace.ran_out("m", 4000)
    pace.calibrate("cuda:0", "m", model_steps(FAST))
    assert pace.budget("m") == 3000, "the least counts"
    pace.calibrate("cuda:0", "m", model_steps(FAST), fitting_tokens=2048)
    assert pace.budget("m") == 2048
    assert pace.budget("n") == UNMEASURED_TOKENS


def test_the_first_calibration_may_meet_the_end_of_the_memory() -> None:
    pace = Pace(metrics=make_metrics())
    pace.calibrate("cuda:0", "m", model_steps(FAST), fitting_tokens=8192)
    assert pace.budget("m") == 8192, "not what an unmeasured model is given"


def test_a_budget_of_the_settings_is_lowered_too() -> None:
    pace = Pace(metrics=make_metrics(), max_batch_tokens=1000)
    pace.ran_out("m", 5)
    assert pace.budget("m") == LEAST_TOKENS


def test_full_batches_widen_a_lowered_budget_until_it_is_what_it_was() -> None:
    pace = Pace(metrics=make_metrics(), max_batch_tokens=1000)
    pace.ran_out("m", 500)
    for _ in range(100):
        pace.note("m", 100, 1, 0.1)
    assert pace.budget("m") == 500, "small batches prove nothing"
    for _ in range(694):
        pace.note("m", pace.budget("m"), 1, 0.1)
    assert 990 < pace.budget("m") <= 1000
    for _ in range(1000):
        pace.note("m", pace.budget("m"), 1, 0.1)
    assert pace.budget("m") == 1000
