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
def test_patience_with_a_start(longest_s: float | None, expected: float) -> None:
    assert RestartPolicy(threads=1).start_patience_s(longest_s) == expected


@pytest.mark.parametrize(
    ("predicted_s", "expected"),
    [
        pytest.param(None, 120, id="nobody knows"),
        pytest.param(0.001, 10, id="a short one"),
        pytest.param(1, 20, id="twenty times as long"),
        pytest.param(60, 120, id="the longest"),
    ],
)
def test_patience(predicted_s: float | None, expected: float) -> None:
    assert RestartPolicy(threads=1).patience_s(predicted_s) == expected


def test_patience_is_never_above_the_setting() -> None:
    assert RestartPolicy(threads=1, hang_timeout_s=0.5).patience_s(0.001) == 0.5
