from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.autoscale.hpa import Autoscaler, Policy, Rules, Spec, wanted_for
from benchmarks.autoscale.recording import STEP_S, Step, level, read, write
from benchmarks.autoscale.replay import UTILIZATION, WAIT, Curve, Fleet, replay

ANY = Rules(0.0, (Policy(is_percent=True, value=1000, period_s=15.0),))


def spec(up: Rules = ANY, down: Rules = ANY, **targets: float) -> Spec:
    return Spec(min_pods=2, max_pods=10, targets=targets or {"busy": 0.5}, up=up, down=down)


@pytest.mark.parametrize(
    ("pods", "values", "wanted"),
    [
        (4, [0.5, 0.5, 0.5, 0.5], 4),
        (4, [0.54, 0.54, 0.54, 0.54], 4),  # within the tolerance
        (4, [0.56, 0.56, 0.56, 0.56], 5),
        (4, [1.0, 1.0, 1.0, 1.0], 8),
        (4, [0.2, 0.2, 0.2, 0.2], 2),
        (4, [1.0, 1.0, 0.0, 0.0], 4),  # two of them are only starting
        (3, [0.0, 0.0, 0.0], 0),
    ],
)
def test_the_formula(pods: int, values: list[float], wanted: int) -> None:
    assert wanted_for(pods, values, target=0.5) == wanted


def test_the_largest_answer_counts_and_the_bounds_hold() -> None:
    both = {"busy": 0.5, "wait": 2.0}
    assert Autoscaler(spec(**both)).decide(0, 3, {"busy": [0.5] * 3, "wait": [4.0] * 3}) == 6
    assert Autoscaler(spec(**both)).decide(0, 3, {"busy": [0.5] * 3, "wait": [400.0] * 3}) == 10
    assert Autoscaler(spec(**both)).decide(0, 3, {"busy": [0.0] * 3, "wait": [0.0] * 3}) == 2


def test_down_only_when_nothing_more_was_wanted_in_the_window() -> None:
    scaler = Autoscaler(spec(down=Rules(60.0, ANY.policies)))
    assert scaler.decide(0, 8, {"busy": [0.5] * 8}) == 8
    assert scaler.decide(60, 8, {"busy": [0.25] * 8}) == 8
    assert scaler.decide(61, 8, {"busy": [0.25] * 8}) == 4


def test_up_no_faster_than_the_policy_that_allows_the_most() -> None:
    slow = Rules(
        0.0, (Policy(is_percent=True, value=50, period_s=30.0), Policy(is_percent=False, value=2, period_s=30.0))
    )
    scaler = Autoscaler(spec(up=slow))
    assert scaler.decide(0, 2, {"busy": [5.0] * 2}) == 4
    assert scaler.decide(15, 4, {"busy": [5.0] * 4}) == 4  # the two of this period are there already
    assert scaler.decide(31, 4, {"busy": [5.0] * 4}) == 6
    assert scaler.decide(62, 6, {"busy": [5.0] * 6}) == 9


def test_down_no_faster_either() -> None:
    slow = Rules(
        0.0, (Policy(is_percent=True, value=25, period_s=60.0), Policy(is_percent=False, value=1, period_s=60.0))
    )
    scaler = Autoscaler(spec(down=slow))
    assert scaler.decide(0, 8, {"busy": [0.0] * 8}) == 6
    assert scaler.decide(15, 6, {"busy": [0.0] * 6}) == 6
    assert scaler.decide(61, 6, {"busy": [0.0] * 6}) == 4


def test_a_manifest_is_read_as_it_stands() -> None:
    rules = {
        "stabilizationWindowSeconds": 0,
        "policies": [{"type": "Pods", "value": 2, "periodSeconds": 30}],
        "selectPolicy": "Max",
    }
    metric = {"type": "Pods", "pods": {"metric": {"name": "busy"}, "target": {"averageValue": "650m"}}}
    manifest = {
        "spec": {
            "minReplicas": 1,
            "maxReplicas": 3,
            "metrics": [metric],
            "behavior": {"scaleUp": rules, "scaleDown": rules},
        }
    }
    two = Rules(0, (Policy(is_percent=False, value=2, period_s=30),))
    assert Spec.of(manifest) == Spec(min_pods=1, max_pods=3, targets={"busy": 0.65}, up=two, down=two)


def test_a_recording_is_read_as_it_was_written(tmp_path: Path) -> None:
    steps = [Step(5.0, 100.0, 0.25, 0.0), Step(10.0, 400.5, 1.0, 2.5)]
    write(tmp_path / "day.csv", steps)
    assert read(tmp_path / "day.csv") == steps


def test_the_day_has_quiet_hours_and_a_burst() -> None:
    assert (level(0.0), level(0.9)) == (0.08, 1.0)
    assert max(level(hour / 100) for hour in range(100)) == 1.0


def test_a_pod_says_what_the_recorded_one_said() -> None:
    curve = Curve.of([Step(0.0, tokens, tokens / 1000, 0.0) for tokens in range(0, 1000, 10)])
    assert curve.capacity == pytest.approx(1000)
    assert curve.at(500) == pytest.approx(0.5, abs=0.02)
    assert curve.at(0) == 0.0


def test_what_cannot_be_computed_waits_and_then_is_refused() -> None:
    fleet = Fleet(capacity=100, start_s=30, max_wait_s=2, ready_at=[0.0])
    assert fleet.second(0, 250) == (100, 0)
    assert fleet.wait_s(0) == 1.5
    assert fleet.second(1, 250) == (100, 100)
    fleet.scale(2, 2)
    assert [fleet.ready(now) for now in (2, 31, 32)] == [1, 1, 2]


def test_a_load_that_triples_is_followed_and_let_go_again() -> None:
    step = [Step(0.0, 1000.0 * share, share, 0.0) for share in (0.2, 0.4, 0.6, 0.8, 1.0)]
    low, high = Step(0.0, 150.0, 0.15, 0.0), Step(0.0, 1000.0, 1.0, 0.0)
    seconds = replay(
        [*[low] * 40, *[high] * 100, *[low] * 100, *step],
        spec(**{UTILIZATION: 0.65, WAIT: 2.0}),
        times=3,
        stretch=1,
        start_s=30,
    )
    quiet, busy, after = (seconds[round(steps * STEP_S) - 1] for steps in (40, 140, 240))
    assert (quiet.pods, busy.pods, after.pods) == (2, 5, 2)
    assert (busy.ready, busy.wait_s) == (5, 0.0)
