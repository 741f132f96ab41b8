"""Latency model: predictions, batch budget, reaction to stalls, and least squares against brute force."""

from __future__ import annotations

import logging
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching import latency_model
from service.batching.latency_model import (
    MAX_SURPRISE,
    MIN_BATCH_TOKENS,
    UNMEASURED_TOKENS,
    Cost,
    LatencyModel,
    LatencyModels,
    Sums,
)
from service.domain import Step
from tests.fakes import make_metrics, value

SIZES = [(16, 1), (32, 1), (64, 1), (64, 2), (128, 1), (128, 4), (256, 2)]
LARGE = Cost(batch=0.1, token=0.0026, row=0.001)


def steps(cost: Cost, sizes: list[tuple[int, int]] = SIZES) -> list[Step]:
    return [Step(tokens, rows, cost.of(tokens, rows)) for tokens, rows in sizes]


@pytest.mark.parametrize(
    ("x", "y", "solution"),
    [
        ([], [], (0, 0, 0)),
        ([(1, 2, 1), (1, 4, 1), (1, 4, 2)], [8, 12, 15], (1, 2, 3)),
        ([(1, 2, 1)], [6], (0, 3, 0)),
        ([(1, 2, 1), (1, 4, 1)], [5, 9], (1, 2, 0)),
        ([(1, 1, 1), (1, 2, 1), (1, 3, 2)], [1, 2, 3], (0, 1, 0)),
        ([(1, 1, 1), (1, 2, 1)], [2, 1], (1.5, 0, 0)),
        ([(1, 1, 1)], [-1], (0, 0, 0)),
    ],
)
def test_least_squares_has_no_negative_coefficients(
    x: list[tuple[float, float, float]], y: list[float], solution: tuple[float, ...]
) -> None:
    sums = Sums()
    for row, target in zip(x, y, strict=True):
        sums.add(row, target, 2.0)
    assert sums.solve() == pytest.approx(solution, abs=1e-9)


whole = st.integers(0, 9)


@given(st.lists(st.tuples(whole, whole, whole, st.integers(-9, 9)), min_size=1, max_size=8))
def test_least_squares_is_at_least_as_good_as_any_grid_point(table: list[tuple[int, int, int, int]]) -> None:
    sums = Sums()
    for *x, y in table:
        sums.add((x[0], x[1], x[2]), y, 1.0)
    x, y = np.array(table)[:, :3], np.array(table)[:, 3]
    found = np.array(sums.solve())
    grid = np.array(list(product((0.0, 0.1, 0.3, 1.0, 3.0), repeat=3)))
    grid = np.concatenate([grid, found * grid, np.maximum(0, found + grid - 0.5)])
    errors = ((x @ grid.T - y[:, None]) ** 2).sum(axis=0)
    assert (found >= 0).all()
    assert ((x @ found - y) ** 2).sum() <= errors.min() + 1e-6 * (y**2).sum()


def test_a_calibration_recovers_the_cost() -> None:
    model = LatencyModel(steps(LARGE))
    assert model.cost is not None
    assert model.predict(300, 7) == pytest.approx(LARGE.of(300, 7))


def test_an_unmeasured_model_predicts_none() -> None:
    assert LatencyModel().predict(10, 1) is None


def test_without_a_calibration_the_cost_is_fitted_to_the_observed_batches() -> None:
    model = LatencyModel()
    model.note(100, 4, 0.5)
    assert model.predict(200, 1) == pytest.approx(1.0)
    for tokens, rows in SIZES * 20:
        model.note(tokens, rows, LARGE.of(tokens, rows))
    assert model.predict(200, 2) == pytest.approx(LARGE.of(200, 2), rel=0.02)


def test_batches_of_one_size_scale_the_calibrated_cost() -> None:
    model = LatencyModel(steps(LARGE))
    for _ in range(1000):
        model.note(200, 5, 2 * LARGE.of(200, 5))
    for tokens, rows in [(200, 5), (20, 1), (800, 20)]:
        assert model.predict(tokens, rows) == pytest.approx(2 * LARGE.of(tokens, rows), rel=0.02)


def test_one_stall_changes_little_and_a_lasting_change_is_learned() -> None:
    model = LatencyModel(steps(LARGE))
    usual = LARGE.of(200, 5)
    for _ in range(50):
        model.note(200, 5, usual)
    model.note(200, 5, 1000 * usual)
    assert model.predict(200, 5) == pytest.approx(usual, rel=MAX_SURPRISE * 0.05)
    for _ in range(100):
        model.note(200, 5, 10 * usual)
    assert model.predict(200, 5) == pytest.approx(10 * usual, rel=0.05)


@given(
    st.lists(st.tuples(st.integers(1, 10_000), st.integers(1, 64), st.floats(0.0, 100.0)), min_size=1, max_size=60),
    st.booleans(),
)
def test_no_cost_is_negative(noted: list[tuple[int, int, float]], is_calibrated: bool) -> None:
    model = LatencyModel(steps(LARGE) if is_calibrated else ())
    for tokens, rows, seconds in noted:
        model.note(tokens, min(rows, tokens), seconds)
        assert model.cost is not None
        assert min(model.cost.batch, model.cost.token, model.cost.row) >= 0.0


@pytest.mark.parametrize(
    ("cost", "target_s", "tokens"),
    [
        (LARGE, 0.5, 152),
        (LARGE, 0.05, latency_model.MIN_BATCH_TOKENS),
        (Cost(0.008, 13e-6, 0.0), 0.5, 12_423),
        (Cost(0.008, 13e-6, 0.0), 0.1, 7_038),
        (Cost(0.001, 1e-5, 0.0), 0.5, 2_850),
        (Cost(0.0, 1e-3, 0.0), 0.5, 499),
        (Cost(0.0, 1e-4, 0.0), 0.5, latency_model.MIN_KNEE_TOKENS),
        (Cost(0.1, 0.0, 0.0), 0.5, latency_model.MAX_BATCH_TOKENS),
        (Cost(0.0, 0.0, 0.0), 0.5, latency_model.MAX_BATCH_TOKENS),
    ],
)
def test_the_budget_is_the_knee_within_the_target(cost: Cost, target_s: float, tokens: int) -> None:
    assert latency_model.choose_budget(cost, target_s) == pytest.approx(tokens, abs=1)


@pytest.mark.parametrize(("efficiency", "tokens"), [(0.95, 2_850), (0.99, 14_850)])
def test_a_greater_efficiency_moves_the_knee(efficiency: float, tokens: int) -> None:
    assert latency_model.choose_budget(Cost(0.001, 1e-5, 0.0), 0.5, efficiency) == pytest.approx(tokens, abs=1)


MODEL_SIZES = [(16, 1), (32, 1), (64, 1), (64, 2), (128, 1), (128, 4)]
FAST, SLOW = Cost(0.008, 13e-6, 0.0), Cost(0.1, 0.0026, 0.0)


def model_steps(cost: Cost) -> list[Step]:
    return [Step(tokens, rows, cost.of(tokens, rows)) for tokens, rows in MODEL_SIZES]


def test_a_calibration_sets_logs_and_exports_the_budget(caplog: pytest.LogCaptureFixture) -> None:
    metrics = make_metrics()
    latency_models = LatencyModels(metrics=metrics, target_s=0.5)
    assert latency_models.budget("m") == UNMEASURED_TOKENS
    assert latency_models.predict("m", 100, 1) is None
    with caplog.at_level(logging.INFO):
        latency_models.calibrate("cpu", "m", model_steps(SLOW))
        latency_models.calibrate("cpu", "n", [])
        latency_models.calibrate("cpu", "m", model_steps(SLOW))
    assert latency_models.budget("m") == pytest.approx(153, abs=1)
    assert latency_models.budget("n") == UNMEASURED_TOKENS, "it has no measurements"
    assert value(metrics, "batch_budget_tokens", model="m") == latency_models.budget("m")
    assert value(metrics, "predicted_cost_seconds", model="m", of="batch") == pytest.approx(0.1)
    assert value(metrics, "predicted_cost_seconds", model="m", of="token") == pytest.approx(0.0026)
    (record,) = caplog.records
    assert (record.getMessage(), record.__dict__["model"]) == ("batch budget chosen", "m")


def test_the_budget_has_the_efficiency_that_is_set() -> None:
    [usual, large] = [LatencyModels(metrics=make_metrics(), efficiency=each) for each in (0.95, 0.98)]
    for latency_models in (usual, large):
        latency_models.calibrate("cpu", "m", model_steps(Cost(0.001, 1e-5, 0.0)))
    assert usual.budget("m") < large.budget("m")


def test_max_batch_tokens_overrides_the_budget_and_not_the_predictions() -> None:
    latency_models = LatencyModels(metrics=make_metrics(), max_batch_tokens=1000)
    latency_models.calibrate("cpu", "m", model_steps(SLOW))
    assert latency_models.budget("m") == 1000
    assert latency_models.predict("m", 500, 1) == pytest.approx(SLOW.of(500, 1))
    assert latency_models.predict("m", 5000, 1) == pytest.approx(5 * SLOW.of(1000, 0))


def test_the_budget_follows_the_slowest_replica_and_a_new_calibration_replaces_the_old() -> None:
    latency_models = LatencyModels(metrics=make_metrics())
    latency_models.calibrate("cuda:0", "m", model_steps(FAST))
    assert latency_models.budget("m") > 10_000
    latency_models.calibrate("cpu", "m", model_steps(SLOW))
    assert latency_models.budget("m") < 200
    latency_models.calibrate("cpu", "m", model_steps(FAST))
    assert latency_models.budget("m") > 10_000
    assert latency_models.predict("m", 100, 1) == pytest.approx(FAST.of(100, 1))


def test_the_budget_shrinks_when_a_device_slows_down_and_grows_when_it_recovers() -> None:
    metrics = make_metrics()
    latency_models = LatencyModels(metrics=metrics, target_s=0.5)
    latency_models.calibrate("cpu", "m", model_steps(SLOW))
    usual = latency_models.budget("m")
    serve(latency_models, SLOW.stretched(1.5))
    assert latency_models.budget("m") == pytest.approx((0.5 - 0.15) / 0.0039, abs=1)
    assert value(metrics, "batch_budget_tokens", model="m") == latency_models.budget("m")
    serve(latency_models, SLOW)
    assert latency_models.budget("m") == pytest.approx(usual, abs=1)


def test_batches_of_one_size_do_not_change_the_budget() -> None:
    latency_models = LatencyModels(metrics=make_metrics(), target_s=10.0)
    latency_models.calibrate("cuda:0", "m", model_steps(FAST))
    usual = latency_models.budget("m")
    serve(latency_models, FAST)
    assert latency_models.budget("m") == pytest.approx(usual, rel=1e-3)


def serve(latency_models: LatencyModels, cost: Cost) -> None:
    for _ in range(200):
        latency_models.note("m", 100, 1, cost.of(100, 1))


def test_the_ratio_of_actual_to_predicted_time_is_a_metric() -> None:
    metrics = make_metrics()
    latency_models = LatencyModels(metrics=metrics)
    latency_models.note("m", 100, 1, 0.5)
    assert value(metrics, "prediction_ratio_count", model="m") == 0, "there was no prediction"
    latency_models.note("m", 100, 1, 1.0)
    assert value(metrics, "prediction_ratio_sum", model="m") == 2.0
    assert latency_models.predict("m", 100, 1) == pytest.approx(0.75, abs=0.05)


def test_out_of_memory_lowers_the_budget_and_a_calibration_does_not_raise_it() -> None:
    metrics = make_metrics()
    latency_models = LatencyModels(metrics=metrics)
    latency_models.calibrate("cuda:0", "m", model_steps(FAST))
    latency_models.limit_memory("m", 3000)
    assert latency_models.budget("m") == value(metrics, "batch_budget_tokens", model="m") == 3000
    latency_models.limit_memory("m", 4000)
    latency_models.calibrate("cuda:0", "m", model_steps(FAST))
    assert latency_models.budget("m") == 3000, "the lowest limit applies"
    latency_models.calibrate("cuda:0", "m", model_steps(FAST), fitting_tokens=2048)
    assert latency_models.budget("m") == 2048
    assert latency_models.budget("n") == UNMEASURED_TOKENS


def test_the_first_calibration_limits_the_budget_to_the_tokens_that_fit() -> None:
    latency_models = LatencyModels(metrics=make_metrics())
    latency_models.calibrate("cuda:0", "m", model_steps(FAST), fitting_tokens=8192)
    assert latency_models.budget("m") == 8192, "not the budget of an unmeasured model"


def test_out_of_memory_lowers_a_configured_budget() -> None:
    latency_models = LatencyModels(metrics=make_metrics(), max_batch_tokens=1000)
    latency_models.limit_memory("m", 5)
    assert latency_models.budget("m") == MIN_BATCH_TOKENS


def test_full_batches_raise_a_lowered_budget_up_to_its_original_value() -> None:
    latency_models = LatencyModels(metrics=make_metrics(), max_batch_tokens=1000)
    latency_models.limit_memory("m", 500)
    for _ in range(100):
        latency_models.note("m", 100, 1, 0.1)
    assert latency_models.budget("m") == 500, "small batches do not raise it"
    for _ in range(694):
        latency_models.note("m", latency_models.budget("m"), 1, 0.1)
    assert 990 < latency_models.budget("m") <= 1000
    for _ in range(1000):
        latency_models.note("m", latency_models.budget("m"), 1, 0.1)
    assert latency_models.budget("m") == 1000
