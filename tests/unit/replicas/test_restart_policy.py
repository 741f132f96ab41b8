"""Restart policy: back-off between starts, and the time-outs of a start and a batch."""

from __future__ import annotations

import pytest

from service.replicas.replica import RestartPolicy, back_off_s


def test_back_off_doubles_up_to_its_limit() -> None:
    assert [back_off_s(failures) for failures in range(1, 10)] == [0, 1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.parametrize(
    ("longest_s", "expected"),
    [
        pytest.param(None, 900, id="first start"),
        pytest.param(2, 30, id="minimum"),
        pytest.param(60, 300, id="five times"),
        pytest.param(600, 900, id="maximum"),
    ],
)
def test_load_timeout_is_five_times_the_longest_start(longest_s: float | None, expected: float) -> None:
    assert RestartPolicy(threads=1).load_timeout_s(longest_s) == expected


@pytest.mark.parametrize(
    ("predicted_s", "expected"),
    [
        pytest.param(None, 120, id="no prediction"),
        pytest.param(0.001, 10, id="minimum"),
        pytest.param(1, 20, id="twenty times"),
        pytest.param(60, 120, id="maximum"),
    ],
)
def test_batch_timeout_is_twenty_times_the_prediction(predicted_s: float | None, expected: float) -> None:
    assert RestartPolicy(threads=1).batch_timeout_s(predicted_s) == expected


def test_batch_timeout_is_at_most_hang_timeout_s() -> None:
    assert RestartPolicy(threads=1, hang_timeout_s=0.5).batch_timeout_s(0.001) == 0.5
