"""The report of an evaluation: accuracy, F1, intervals, correlation, calibration, and its warnings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.tasks.calibration import label_digest
from service.tools.data.converters import Example
from service.tools.evaluation import Answer, EvaluationClient, EvaluationError
from service.tools.scoring import calibrate, confusion, report_of, spearman, wilson


def one(answer: int, chosen: str | None, options: tuple[str, ...] = ("差", "好"), reason: str = "") -> Answer:
    return Answer(Example("classify", ("文本",), options, answer), chosen, reason=reason)


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (840, 1000, 0.8160, 0.8614)],
)
def test_wilson_agrees_with_published_values(correct: int, total: int, low: float, high: float) -> None:
    assert wilson(correct, total) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 5000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_interval_contains_the_share_and_is_within_0_and_1(counts: tuple[int, int]) -> None:
    low, high = wilson(*counts)
    assert 0 <= low <= counts[0] / counts[1] + 1e-12
    assert counts[0] / counts[1] - 1e-12 <= high <= 1


def test_a_report_counts_answers_refusals_and_confusion() -> None:
    report = report_of([one(0, "差"), one(0, "好"), one(1, "好"), one(1, "好"), one(1, None, reason="too long")])
    assert (report["examples"], report["correct"], report["accuracy"]) == (4, 3, 0.75)
    assert report["chance"] == 0.5
    assert report["refused"] == {"too long": 1}
    assert report["confusion"] == {"差": {"差": 1, "好": 1}, "好": {"差": 0, "好": 2}}


def test_an_unknown_label_is_a_column_of_the_confusion() -> None:
    assert confusion([one(0, "POSITIVE"), one(1, "好")]) == {
        "差": {"差": 0, "好": 0, "POSITIVE": 1},
        "好": {"差": 0, "好": 1, "POSITIVE": 0},
    }


def test_confusion_is_none_when_options_differ() -> None:
    assert confusion([one(0, "差"), one(0, "甲", ("甲", "乙"))]) is None


def test_the_error_of_a_report_without_answers_has_the_reason() -> None:
    with pytest.raises(EvaluationError, match="every input was refused: too long"):
        report_of([one(0, None, reason="too long")])
    with pytest.raises(EvaluationError, match="no examples"):
        report_of([])


def test_a_model_with_other_labels_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="the model calls its classes 正面, 负面, the data set 差, 好"):
        report_of([one(0, "负面"), one(1, "正面")])


def many(*counts: tuple[int, str, int]) -> list[Answer]:
    """`counts` are (index of the right answer, chosen, how many)."""
    return [one(answer, chosen) for answer, chosen, num in counts for _ in range(num)]


def test_each_class_has_precision_recall_and_f1() -> None:
    report = report_of(many((0, "差", 3), (0, "好", 1), (1, "好", 4), (1, "差", 2)))
    assert report["classes"]["差"] == {"precision": 0.6, "recall": 0.75, "f1": 0.6667, "examples": 4, "chosen": 5}
    assert report["classes"]["好"] == {"precision": 0.8, "recall": 0.6667, "f1": 0.7273, "examples": 6, "chosen": 5}
    assert report["macro_f1"] == pytest.approx((0.66667 + 0.72727) / 2, abs=1e-4)
    low, high = report["macro_f1_interval_95"]
    assert low < report["macro_f1"] < high


def test_macro_f1_leaves_out_classes_that_do_not_occur() -> None:
    options = ("差", "好", "中")
    answers = [one(0, "差", options), one(1, "好", options)]
    assert report_of(answers)["macro_f1"] == 1.0


def test_one_class_that_takes_all_is_a_warning() -> None:
    report = report_of(many((1, "好", 75), (0, "好", 25)))
    assert report["accuracy"] == 0.75
    assert report["macro_f1"] == pytest.approx(0.4286, abs=1e-4)
    assert report["warnings"] == [
        "always answering '好' would be right as often (75.0%)",
        "one class takes all: '好' is the answer to 100% of the texts",
    ]


def test_an_accuracy_at_chance_is_a_warning() -> None:
    warnings = report_of(many((0, "差", 52), (0, "好", 48), (1, "好", 51), (1, "差", 49)))["warnings"]
    assert warnings == ["the accuracy is not above chance (50.0%): its interval starts at 44.6%"]


def test_a_good_result_has_no_warning() -> None:
    assert report_of(many((0, "差", 45), (0, "好", 5), (1, "好", 46), (1, "差", 4)))["warnings"] == []


def scored(answer: int, good: float, options: tuple[str, ...] = ("差", "好")) -> Answer:
    scores = (("好", good), ("差", 1 - good))
    chosen = "好" if good >= 0.5 else "差"
    return Answer(Example("classify", ("文本",), options, answer), chosen, scores=scores, score=max(good, 1 - good))


OVERCONFIDENT = [
    scored(1 - index % 2 if index % 8 in (0, 3) else index % 2, 0.99 if index % 2 else 0.01) for index in range(200)
]
"""Three of four are right, with a score of 0.99."""


def test_calibration_is_in_the_report() -> None:
    calibration = report_of(OVERCONFIDENT)["calibration"]
    assert calibration["ece"] == pytest.approx(0.24, abs=0.01)
    assert calibration["temperature"] > 3
    assert calibration["ece_after"] < calibration["ece"] / 3
    assert calibration["coverage"][0]["accuracy"] == 0.75


def test_answers_without_all_scores_have_no_calibration() -> None:
    assert report_of(many((0, "差", 3), (1, "好", 3)))["calibration"] is None


def test_a_label_set_without_a_list_of_classes_has_no_confusion() -> None:
    report = report_of([one(0, "差"), one(0, "甲", ("甲", "乙"))])
    assert report["confusion"] is None
    assert "macro_f1" not in report


def several(expected: tuple[int, ...], chosen: tuple[str, ...]) -> Answer:
    example = Example("classify", ("文本",), ("物流", "质量", "价格"), -1, answers=expected)
    scores = tuple((label, 0.9 if label in chosen else 0.1) for label in example.options)
    return Answer(example, "物流", scores=scores, score=0.9, several=chosen)


def test_several_labels_count_one_by_one_and_together() -> None:
    report = report_of(
        [several((0, 1), ("物流", "质量")), several((), ()), several((1,), ("物流",)), several((1,), ("质量",))]
    )
    assert report["exact"] == 0.75
    assert report["micro_f1"] == 0.75
    assert report["classes"]["物流"] == {"precision": 0.5, "recall": 1.0, "f1": 0.6667, "examples": 1, "chosen": 2}
    assert report["classes"]["价格"]["f1"] == 0.0
    assert report["warnings"] == []


def test_no_label_for_any_text_is_a_warning() -> None:
    assert report_of([several((1,), ())])["warnings"] == ["no label holds for any text: try a lower --threshold"]


def test_labels_of_another_model_are_an_error() -> None:
    answer = Answer(several((0,), ()).example, "x", scores=(("x", 0.9),), several=("x",))
    with pytest.raises(EvaluationError, match="the model calls its labels x, the data set 物流, 质量, 价格"):
        report_of([answer])


def graded(grade: float, score: float) -> Answer:
    return Answer(Example("similarity", ("甲", "乙"), (), -1, grade=grade), "", score=score)


def test_grades_are_correlated_with_the_scores() -> None:
    report = report_of([graded(index, index**3 / 1e6) for index in range(100)])
    assert report["spearman"] == 1.0
    assert report["pearson"] < 1.0
    assert "accuracy" not in report


def test_a_correlation_of_nothing_is_a_warning() -> None:
    scores = np.random.default_rng(1).random(60)
    report = report_of([graded(index % 5, float(score)) for index, score in enumerate(scores)])
    low, high = report["interval_95"]
    assert low < report["spearman"] < high
    assert report["warnings"] == ["the order of the scores is not that of the grades: the interval contains 0"]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3, 4, 5], [5, 6, 7, 8, 7], 0.8207826816681233),
        ([1, 2, 2, 4], [1, 3, 2, 4], 0.9486832980505138),
        ([1, 1, 1], [1, 2, 3], 0.0),
    ],
)
def test_spearman_shares_ranks_of_equal_values(first: list[float], second: list[float], expected: float) -> None:
    assert spearman(np.array(first, dtype=float), np.array(second, dtype=float)) == pytest.approx(expected)


def client_of(method: str | None = "choice") -> EvaluationClient:
    client = EvaluationClient(httpx.AsyncClient())
    client.models, client.method = ("mini",), method
    return client


def test_the_fitted_temperature_is_added_to_a_calibration_file(tmp_path: Path) -> None:
    entry = calibrate(tmp_path / "c.json", OVERCONFIDENT, client_of(), name="reviews")
    [stored] = json.loads((tmp_path / "c.json").read_text())["entries"]
    assert (stored["models"], stored["labels_sha256"]) == (["mini"], label_digest(("差", "好")))
    assert stored["temperature"] == entry["temperature"] > 3


@pytest.mark.parametrize(
    ("answers", "method", "message"),
    [
        (OVERCONFIDENT[:8], "choice", "a temperature needs at least"),
        ([*OVERCONFIDENT, scored(0, 0.2, ("好", "差"))], "choice", "needs a classification with one list of labels"),
        (many((0, "差", 30)), "choice", "and a score for each"),
        (OVERCONFIDENT, None, "needs a classification"),
        ([], "choice", "needs a classification"),
    ],
)
def test_answers_that_cannot_be_calibrated_are_refused(
    tmp_path: Path, answers: list[Answer], method: str | None, message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        calibrate(tmp_path / "c.json", answers, client_of(method), name="reviews")
    assert not (tmp_path / "c.json").exists()


def test_scores_that_the_server_has_calibrated_are_not_calibrated_again(tmp_path: Path) -> None:
    answers = [replace(answer, is_calibrated=True) for answer in OVERCONFIDENT]
    with pytest.raises(EvaluationError, match="start it without --calibration"):
        calibrate(tmp_path / "c.json", answers, client_of(), name="reviews")
