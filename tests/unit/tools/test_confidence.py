"""Temperatures, calibration errors and risk-coverage curves, against cases computed by hand and properties."""

from __future__ import annotations

import json
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.tools import confidence
from service.tools.confidence import Judged

judged_answers = st.lists(
    st.tuples(st.sampled_from((0.1, 0.25, 0.5, 0.75, 0.9, 0.99)), st.booleans()), min_size=1, max_size=60
)


def judged(*pairs: tuple[float, bool]) -> Judged:
    return Judged.ordered([score for score, _ in pairs], [right for _, right in pairs])


def drawn(temperature: float, *, num: int = 4000, num_labels: int = 5, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are too certain by this temperature: the answers are drawn at it."""
    rng = np.random.default_rng(seed)
    logits = 2.0 * rng.normal(size=(num, num_labels))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    answers = (true.cumsum(axis=1) < rng.random((num, 1))).sum(axis=1)
    claimed = np.exp(temperature * logits)
    return claimed / claimed.sum(axis=1, keepdims=True), answers


# temperature


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_of_drawn_answers_is_found_again(temperature: float) -> None:
    assert confidence.fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.05)


def test_the_temperature_of_two_labels_is_that_of_the_share_that_is_right() -> None:
    """Of scores of 0.9 of which 3 in 4 are right, the logit log 9 must become log 3: at the temperature 2."""
    probabilities, answers = np.tile([0.9, 0.1], (4000, 1)), np.arange(4000) % 4 == 0
    assert confidence.fit_temperature(probabilities, answers) == pytest.approx(2.0, rel=1e-3)


def test_the_temperature_of_independent_labels_is_that_of_their_shares() -> None:
    probabilities = np.full((4000, 1), 0.9)
    answers = (np.arange(4000) % 4 != 0)[:, None]
    assert confidence.fit_temperature(probabilities, answers) == pytest.approx(2.0, rel=1e-3)


def test_examples_that_are_all_right_have_a_moderate_temperature() -> None:
    temperature = confidence.fit_temperature(np.tile([0.7, 0.3], (20, 1)), np.zeros(20, dtype=int))
    assert 0.1 < temperature < 1.0


def test_rows_that_are_filled_up_have_the_temperature_of_the_rows_alone() -> None:
    probabilities, answers = drawn(2.0, num=200)
    filled = confidence.stack([*probabilities.tolist(), [0.125] * 8])[:-1]
    assert filled.shape == (200, 8)
    assert confidence.fit_temperature(filled, answers) == pytest.approx(
        confidence.fit_temperature(probabilities, answers)
    )


def test_an_answer_whose_score_was_rounded_to_zero_has_a_temperature() -> None:
    probabilities = np.tile([1.0, 0.0], (40, 1))
    assert 1.0 < confidence.fit_temperature(probabilities, np.arange(40) % 20 == 0) < confidence.MAX_TEMPERATURE


def test_scaling_keeps_the_order_of_the_labels_and_the_sum() -> None:
    probabilities, answers = drawn(1.0, num=50)
    scaled = confidence.scale(probabilities, answers, 3.0)
    assert np.array_equal(scaled.argsort(axis=1), probabilities.argsort(axis=1))
    assert scaled.sum(axis=1) == pytest.approx(np.ones(50), abs=1e-6)


def test_scaling_keeps_filled_up_labels_at_zero() -> None:
    assert confidence.scale([[0.9, 0.1, 0.0]], [0], 2.0)[0] == pytest.approx([0.75, 0.25, 0.0])


def test_scaling_independent_labels_scales_each_logit() -> None:
    assert confidence.scale([[0.9, 0.5, 0.1]], [[1, 0, 0]], 2.0)[0] == pytest.approx([0.75, 0.5, 0.25])


def test_an_example_does_not_change_the_temperature_that_it_is_cross_fitted_with() -> None:
    probabilities, answers = drawn(2.0, num=40)
    changed = answers.copy()
    changed[7] = (answers[7] + 1) % 5
    before, after = (confidence.scale_cross_fitted(probabilities, each) for each in (answers, changed))
    assert np.array_equal(before[7], after[7])
    is_same = np.all(before == after, axis=1)
    assert is_same.sum() == 20


def test_classes_that_alternate_are_in_both_halves_of_a_cross_fit() -> None:
    """Every other example is right: halves of even and odd places would be scaled to 1 and to one half."""
    probabilities, answers = np.tile([0.75, 0.25], (400, 1)), np.arange(400) % 2
    scaled = confidence.scale_cross_fitted(probabilities, answers)
    assert scaled.max(axis=1) == pytest.approx(np.full(400, 0.5), abs=0.1)


def test_a_fit_report_says_what_calibration_gains() -> None:
    found = confidence.fit_report(*drawn(3.0))
    assert found["ece_after"] < 0.03 < found["ece_before"]
    assert found["temperature"] == pytest.approx(3.0, rel=0.05)
    assert found["examples"] == 4000


@pytest.mark.parametrize(
    ("probabilities", "answers", "problem"),
    [
        ([[0.5, 0.5]] * 9, [0] * 9, "at least 10"),
        ([[0.5, 0.5]] * 10, [2] * 10, "index of a label"),
        ([[0.5, 0.5]] * 10, [0] * 9, "one answer"),
        ([[0.5, 1.5]] * 10, [0] * 10, "from 0 to 1"),
        ([[0.5, float("nan")]] * 10, [0] * 10, "from 0 to 1"),
        ([[0.5, 0.5]] * 10, [[2, 0]] * 10, "0 or 1"),
    ],
)
def test_what_cannot_be_fitted_is_refused(probabilities: list[list[float]], answers: list[int], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        confidence.fit_temperature(probabilities, answers)


# calibration error


def test_the_error_of_one_bin_is_the_distance_of_confidence_and_accuracy() -> None:
    assert confidence.calibration_error(judged((0.8, True), (0.6, False)), num_bins=1) == pytest.approx(0.2)


def test_the_error_is_the_mean_over_the_answers_of_the_error_of_their_bin() -> None:
    """Bins of two: 0.9 and 0.8 with accuracy 1, 0.6 and 0.5 with accuracy 0."""
    answers = judged((0.9, True), (0.8, True), (0.6, False), (0.5, False))
    assert confidence.calibration_error(answers, num_bins=2) == pytest.approx((2 * 0.15 + 2 * 0.55) / 4)


def test_the_answers_of_a_calibrated_model_have_no_error() -> None:
    answers = judged(*[(0.75, index % 4 != 0) for index in range(40)], *[(0.5, index % 2 == 0) for index in range(40)])
    assert confidence.calibration_error(answers, num_bins=2) == pytest.approx(0.0)


def test_the_error_by_chance_is_the_mean_error_of_right_confidences() -> None:
    rng = np.random.default_rng(1)
    confidences = np.linspace(0.2, 0.95, 300)
    errors = [
        confidence.calibration_error(Judged.ordered(confidences, rng.random(300) < confidences)) for _ in range(200)
    ]
    assert confidence.error_by_chance(Judged.ordered(confidences, confidences > 0.5)) == pytest.approx(
        np.mean(errors), rel=0.05
    )


@given(judged_answers, st.randoms(use_true_random=False))
def test_the_order_of_the_examples_changes_nothing(pairs: list[tuple[float, bool]], random: Random) -> None:
    mixed = list(pairs)
    random.shuffle(mixed)
    one, other = judged(*pairs), judged(*mixed)
    assert confidence.calibration_error(one) == pytest.approx(confidence.calibration_error(other))
    assert confidence.risk_coverage(one)[1] == pytest.approx(confidence.risk_coverage(other)[1])


# risk and coverage


def test_the_curve_has_a_point_for_each_confidence() -> None:
    points, _ = confidence.risk_coverage(judged((0.9, True), (0.8, False), (0.8, True), (0.4, False)))
    assert [(one.num, one.coverage, one.accuracy) for one in points] == [
        (1, 0.25, 1.0),
        (3, 0.75, 2 / 3),
        (4, 1.0, 0.5),
    ]


def test_the_area_is_the_mean_risk_over_all_coverages() -> None:
    _, area = confidence.risk_coverage(judged((0.9, True), (0.8, False), (0.7, True), (0.6, False)))
    assert area == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)


def test_equal_confidences_have_the_area_of_any_order() -> None:
    _, area = confidence.risk_coverage(judged(*[(0.5, index % 4 == 0) for index in range(8)]))
    assert area == pytest.approx(0.75)


@given(judged_answers)
def test_a_threshold_leaves_exactly_the_answers_of_its_point(pairs: list[tuple[float, bool]]) -> None:
    answers = judged(*pairs)
    for point in confidence.risk_coverage(answers)[0]:
        is_kept = answers.confidences >= point.min_score
        assert is_kept.sum() == point.num
        assert answers.is_right[is_kept].mean() == pytest.approx(point.accuracy)


def test_a_threshold_has_few_digits() -> None:
    points, _ = confidence.risk_coverage(judged((0.98765432, True), (0.71828182, False)))
    assert points[0].min_score == 0.98


def test_the_threshold_of_a_precision_has_the_largest_coverage() -> None:
    """The accuracies are 1, 1/2, 2/3 and 3/4: the second one is below what the last one reaches."""
    points, _ = confidence.risk_coverage(judged((0.9, True), (0.8, False), (0.7, True), (0.6, True)))
    found = confidence.find_threshold(points, 0.7)
    assert found is not None
    assert found.num == 4


def test_a_precision_that_no_confidence_reaches_has_no_threshold() -> None:
    points, _ = confidence.risk_coverage(judged((0.9, False), (0.8, True)))
    assert confidence.find_threshold(points, 0.9) is None


@given(judged_answers, st.floats(0.0, 1.0))
def test_the_threshold_reaches_its_precision(pairs: list[tuple[float, bool]], precision: float) -> None:
    points, _ = confidence.risk_coverage(judged(*pairs))
    found = confidence.find_threshold(points, precision)
    assert max(point.accuracy for point in points) < precision if found is None else found.accuracy >= precision


def test_a_tie_for_the_first_label_is_decided_as_the_server_does() -> None:
    assert Judged.of([[0.4, 0.4, 0.2]] * 2, [0, 1]).is_right.tolist() == [True, False]


def test_each_independent_label_is_an_answer() -> None:
    found = Judged.of([[0.9, 0.2]], [[1, 0]])
    assert (found.confidences.tolist(), found.is_right.tolist()) == ([0.9, 0.2], [True, False])


def test_a_report_is_json_with_the_points_of_all_coverages() -> None:
    found = json.loads(json.dumps(confidence.report(*drawn(1.0, num=200))))
    assert [point["coverage"] for point in found["coverage"]] == pytest.approx(confidence.COVERAGES)
    assert found["coverage"][0]["accuracy"] == pytest.approx(found["accuracy"])
    assert list(found["thresholds"]) == ["0.8", "0.9", "0.95", "0.99"]
