"""Confidence: a temperature that makes scores probabilities, and how accuracy grows as fewer texts are decided.

`probabilities` has one row of label probabilities for each example, `answers` the index of the right label; `stack`
makes the array of rows of different lengths. Where labels are independent of each other, `answers` is an array of the
same shape with 1 for each label that is right, and every label counts as an answer of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.tasks.calibration import (
    LOWEST,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    logits_of,
    scale_independent,
    scale_probabilities,
)

Numbers = NDArray[np.float64]
Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]

NUM_BINS = 15
MIN_EXAMPLES = 10
PRIOR_EXAMPLES = 1.0
BISECTIONS = 100
COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
PRECISIONS = (0.8, 0.9, 0.95, 0.99)


def stack(rows: Sequence[Sequence[float]]) -> Numbers:
    """One array of rows of probabilities; shorter rows are filled up with labels of probability 0."""
    width = max(map(len, rows))
    stacked = np.zeros((len(rows), width))
    for index, row in enumerate(rows):
        stacked[index, : len(row)] = row
    return stacked


# temperature


def fit_temperature(probabilities: ArrayLike, answers: ArrayLike) -> float:
    """The temperature with the highest likelihood of the right answers, MIN_TEMPERATURE to MAX_TEMPERATURE.

    The likelihood is concave in 1 / temperature, so its maximum is found by bisection. A prior with its maximum at 1
    weighs as PRIOR_EXAMPLES: without it, examples that are all right would have the temperature 0.

    Raises ValueError for fewer than MIN_EXAMPLES examples, or arrays of wrong shapes.
    """
    scores, right = _checked(probabilities, answers)
    if len(scores) < MIN_EXAMPLES:
        raise ValueError(f"a temperature needs at least {MIN_EXAMPLES} examples; there are {len(scores)}")
    slope_of = _independent_slope if right.ndim == 2 else _slope
    logits = logits_of(scores) if right.ndim == 2 else np.log(np.maximum(scores, LOWEST))
    present = scores > 0

    def slope(inverse: float) -> float:
        """The derivative of the mean loss, which grows with `inverse`."""
        return slope_of(logits, right, present, inverse) + PRIOR_EXAMPLES / len(scores) * (1.0 - 1.0 / inverse)

    low, high = np.log(1.0 / MAX_TEMPERATURE), np.log(1.0 / MIN_TEMPERATURE)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(float(np.exp(middle))) < 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))


def _slope(logits: Numbers, right: Indices, present: Flags, inverse: float) -> float:
    scaled = logits * inverse
    powers = np.where(present, np.exp(scaled - scaled.max(axis=1, keepdims=True)), 0.0)
    expected = (powers * logits).sum(axis=1) / powers.sum(axis=1)
    return float((expected - logits[np.arange(len(right)), right]).mean())


def _independent_slope(logits: Numbers, right: Indices, present: Flags, inverse: float) -> float:
    probabilities = 1.0 / (1.0 + np.exp(-np.clip(logits * inverse, -500, 500)))
    return float(((probabilities - right) * logits).sum(axis=1).mean())


def scale(probabilities: ArrayLike, answers: ArrayLike, temperature: float) -> Numbers:
    """The probabilities at this temperature, as a server returns them that is calibrated with it."""
    scores, right = _checked(probabilities, answers)
    scaled = scale_independent(scores, temperature) if right.ndim == 2 else scale_probabilities(scores, temperature)
    return scaled.astype(np.float64)


def scale_cross_fitted(probabilities: ArrayLike, answers: ArrayLike) -> Numbers:
    """Each half of the examples at the temperature that fits the other half best: no example is judged by a temperature
    that has seen it. The halves are drawn at random, always the same: the order of a file may go by class.

    Raises ValueError for fewer than twice MIN_EXAMPLES examples.
    """
    scores, right = _checked(probabilities, answers)
    scaled = np.empty_like(scores)
    drawn = np.random.default_rng(0).permutation(len(scores))
    for half, other in ((drawn[::2], drawn[1::2]), (drawn[1::2], drawn[::2])):
        scaled[half] = scale(scores[half], right[half], fit_temperature(scores[other], right[other]))
    return scaled


# confidence and whether it was right


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Answers in descending order of their confidence, and whether each was right."""

    confidences: Numbers
    is_right: Flags

    @classmethod
    def of(cls, probabilities: ArrayLike, answers: ArrayLike) -> Judged:
        """The first label of each example. Of several with the highest score it is the one that stands first, as in the
        answer of a server."""
        scores, right = _checked(probabilities, answers)
        if right.ndim == 2:
            return cls.ordered(scores.ravel(), right.ravel() == 1)
        return cls.ordered(scores.max(axis=1), scores.argmax(axis=1) == right)

    @classmethod
    def ordered(cls, confidences: ArrayLike, is_right: ArrayLike) -> Judged:
        given, right = np.asarray(confidences, dtype=np.float64), np.asarray(is_right, dtype=bool)
        if given.shape != right.shape or given.ndim != 1 or not len(given):
            raise ValueError("wanted one confidence and one flag for each of at least one answer")
        order = np.argsort(-given, kind="stable")
        return cls(given[order], right[order])

    @property
    def error_rate(self) -> float:
        return float(1.0 - self.is_right.mean())


@dataclass(frozen=True, slots=True)
class Point:
    """The answers with a confidence of at least `min_score`: how many they are, which share of all, and how many of
    them are right."""

    min_score: float
    num: int
    coverage: float
    accuracy: float


def calibration_error(judged: Judged, num_bins: int = NUM_BINS) -> float:
    """Expected calibration error: the mean over the answers of the distance between confidence and accuracy in a bin.

    The bins are adaptive: as many answers in each, in the order of their confidence, so that no bin is empty or almost
    so where a model is mostly certain. Answers of equal confidence share their accuracy, so the order of the examples
    does not matter. Few examples make the error too large: see `error_by_chance`.
    """
    expected = _shared(judged)
    gaps = [abs(float((judged.confidences[one] - expected[one]).sum())) for one in _bins(judged, num_bins)]
    return float(sum(gaps) / len(expected))


def error_by_chance(judged: Judged, num_bins: int = NUM_BINS) -> float:
    """The expected calibration error that confidences are expected to have on as many answers even if they are right:
    in each bin, the mean distance of a normal distribution from its mean."""
    variances = [
        float((judged.confidences[one] * (1 - judged.confidences[one])).sum()) for one in _bins(judged, num_bins)
    ]
    return float(np.sqrt(2 / np.pi * np.array(variances)).sum() / len(judged.confidences))


def _bins(judged: Judged, num_bins: int) -> list[Indices]:
    return np.array_split(np.arange(len(judged.confidences)), min(num_bins, len(judged.confidences)))


def risk_coverage(judged: Judged) -> tuple[list[Point], float]:
    """The points of the curve, one for each different confidence in descending order, and the area under the risk.

    The area is the mean error rate over all coverages (AURC, Geifman et al. 2019); a confidence that means nothing has
    the error rate, a perfect one about half of its square.
    """
    num = np.arange(1, len(judged.confidences) + 1)
    area = float((1.0 - np.cumsum(_shared(judged)) / num).mean())
    ends = np.flatnonzero(np.append(np.diff(judged.confidences) != 0, True))
    right = np.cumsum(judged.is_right)
    return [_point(judged, int(end), int(right[end])) for end in ends], area


def _point(judged: Judged, end: int, num_right: int) -> Point:
    """The answers up to the one at `end`, with a `min_score` of few digits that separates them from the next one."""
    least = float(judged.confidences[end])
    below = float(judged.confidences[end + 1]) if end + 1 < len(judged.confidences) else 0.0
    num, total = end + 1, len(judged.confidences)
    return Point(_short(below, least), num, num / total, num_right / num)


def _short(low: float, high: float) -> float:
    """The number of the fewest decimals, two at least, above `low` and not above `high`."""
    for decimals in range(2, 17):
        power = 10.0**decimals
        found = int(high * power) / power
        if low < found <= high:
            return found
    return high


def _shared(judged: Judged) -> Numbers:
    """Whether each answer is right; those of equal confidence share the mean."""
    _, group, counts = np.unique(judged.confidences, return_inverse=True, return_counts=True)
    return np.asarray((np.bincount(group, weights=judged.is_right) / counts)[group])


def find_threshold(points: Sequence[Point], precision: float) -> Point | None:
    """The point of the largest coverage with at least this accuracy: its `min_score` is the smallest that reaches it.

    None where no confidence does. On few examples the accuracy is one of luck; judge it by `num`.
    """
    return next((point for point in reversed(points) if point.accuracy >= precision), None)


def at_coverage(points: Sequence[Point], coverage: float) -> Point:
    """The first point with at least this coverage."""
    return next(point for point in points if point.coverage >= coverage - 1e-12)


# reports


def report(probabilities: ArrayLike, answers: ArrayLike, num_bins: int = NUM_BINS) -> dict[str, Any]:
    """Calibration error, area and points of the curve, and the thresholds of wanted accuracies, as JSON-ready numbers.

    A threshold is null where no confidence reaches the accuracy.
    """
    judged = Judged.of(probabilities, answers)
    points, area = risk_coverage(judged)
    thresholds = {f"{precision:g}": find_threshold(points, precision) for precision in PRECISIONS}
    return {
        "examples": len(judged.confidences),
        "ece": round(calibration_error(judged, num_bins), 4),
        "ece_by_chance": round(error_by_chance(judged, num_bins), 4),
        "bins": num_bins,
        "mean_confidence": round(float(judged.confidences.mean()), 4),
        "accuracy": round(1.0 - judged.error_rate, 4),
        "risk_coverage_area": round(area, 4),
        "coverage": [_to_json(at_coverage(points, coverage)) for coverage in COVERAGES],
        "thresholds": {name: None if point is None else _to_json(point) for name, point in thresholds.items()},
    }


def fit_report(probabilities: ArrayLike, answers: ArrayLike, num_bins: int = NUM_BINS) -> dict[str, Any]:
    """The temperature of all examples, and the calibration error before and after it: `ece_after` is that of
    `scale_cross_fitted`, so no example is judged by a temperature that has seen it.

    Raises ValueError as `scale_cross_fitted` does.
    """
    scaled = scale_cross_fitted(probabilities, answers)
    before, after = Judged.of(probabilities, answers), Judged.of(scaled, answers)
    return {
        "temperature": float(f"{fit_temperature(probabilities, answers):.4g}"),
        "examples": len(scaled),
        "ece_before": round(calibration_error(before, num_bins), 4),
        "ece_after": round(calibration_error(after, num_bins), 4),
    }


def _to_json(point: Point) -> dict[str, float]:
    return {
        "min_score": point.min_score,
        "num": point.num,
        "coverage": round(point.coverage, 4),
        "accuracy": round(point.accuracy, 4),
    }


def _checked(probabilities: ArrayLike, answers: ArrayLike) -> tuple[Numbers, Indices]:
    """Raises ValueError."""
    scores, right = np.asarray(probabilities, dtype=np.float64), np.asarray(answers, dtype=np.int64)
    if scores.ndim != 2 or not scores.size or len(right) != len(scores):
        raise ValueError("wanted one row of probabilities, and one answer, for each of at least one example")
    if not np.isfinite(scores).all() or scores.min() < 0 or scores.max() > 1:
        raise ValueError("a probability is not a number from 0 to 1")
    if right.ndim == 2:
        if right.shape != scores.shape or not np.isin(right, (0, 1)).all():
            raise ValueError("wanted 0 or 1 for each label of each example")
    elif right.ndim != 1 or right.min() < 0 or right.max() >= scores.shape[1]:
        raise ValueError("an answer is not the index of a label")
    return scores, right
