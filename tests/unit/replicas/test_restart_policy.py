"""How long to wait: between two starts, and for a batch."""

from __future__ import annotations

import pytest

from service.replicas.replica import RestartPolicy, back_off_s


def test_back_off() -> None:
    assert [back_off_s(failures) for failures in range(1, 10)] == [0, 1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.parametrize(
    ("longest_s", "expected"),
    [
        pytest.param(None, 900, id="the first"),
        pytest.param(2, 30, id="a short one"),
        pytest.param(60, 300, id="five times as long"),
        pytest.param(600, 900, id="the longest"),
    ],
)
def test_the_time_that_a_start_may_take(longest_s: float | None, expected: float) -> None:
    assert RestartPolicy(threads=1).load_timeout_s(longest_s) == expected


@pytest.mark.parametrize(
    ("predicted_s", "expected"),
    [
        pytest.param(None, 120, id="nobody knows"),
        pytest.param(0.001, 10, id="a short one"),
        pytest.param(1, 20, id="twenty times as long"),
        pytest.param(60, 120, id="the longest"),
    ],
)
def test_the_time_that_a_batch_may_take(predicted_s: float | None, expected: float) -> None:
    assert RestartPolicy(threads=1).batch_timeout_s(predicted_s) == expected


def test_it_is_never_above_the_setting() -> None:
    assert RestartPolicy(threads=1, hang_timeout_s=0.5).batch_timeout_s(0.001) == 0.5
