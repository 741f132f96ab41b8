"""Accuracy, interval and confusion, by table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.datasets.example import Example
from service.evaluation.asked import Asked, EvaluationError
from service.evaluation.score import confusion, report_of, wilson


def one(answer: int, chosen: str | None, options: tuple[str, ...] = ("差", "好"), reason: str = "") -> Asked:
    return Asked(Example("classify", ("文本",), options, answer), chosen, reason=reason)


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (840, 1000, 0.8160, 0.8614)],
)
def test_wilson_agrees_with_published_values(correct: int, total: int, low: float, high: float) -> None:
    assert wilson(correct, total) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 5000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_holds_the_share_and_stays_between_0_and_1(counts: tuple[int, int]) -> None:
    low, high = wilson(*counts)
    assert 0 <= low <= counts[0] / counts[1] + 1e-12
    assert counts[0] / counts[1] - 1e-12 <= high <= 1


def test_a_report_counts() -> None:
    report = report_of([one(0, "差"), one(0, "好"), one(1, "好"), one(1, "好"), one(1, None, reason="too long")])
    assert (report["examples"], report["correct"], report["accuracy"]) == (4, 3, 0.75)
    assert report["chance"] == 0.5
    assert report["refused"] == {"too long": 1}
    assert report["confusion"] == {"差": {"差": 1, "好": 1}, "好": {"差": 0, "好": 2}}


def test_a_label_that_no_option_has_is_a_column_of_its_own() -> None:
    assert confusion([one(0, "POSITIVE"), one(1, "好")]) == {
        "差": {"差": 0, "好": 0, "POSITIVE": 1},
        "好": {"差": 0, "好": 1, "POSITIVE": 0},
    }


def test_no_confusion_where_options_differ() -> None:
    assert confusion([one(0, "差"), one(0, "甲", ("甲", "乙"))]) is None


def test_nothing_answered_is_an_error_with_the_reason() -> None:
    with pytest.raises(EvaluationError, match="every input was refused: too long"):
        report_of([one(0, None, reason="too long")])
    with pytest.raises(EvaluationError, match="no examples"):
        report_of([])


def test_a_model_with_other_labels_altogether_is_an_error_and_not_zero_percent() -> None:
    with pytest.raises(EvaluationError, match="the model calls its classes 正面, 负面, the data set 差, 好"):
        report_of([one(0, "负面"), one(1, "正面")])
