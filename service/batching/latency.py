"""How long a batch takes: seconds = a + b * tokens + c * rows, fitted to measured steps and kept current while serving.

Knows no queue, no model's name and no clock: it is told what was measured and says what it expects.

Each step is weighed by one over its usual seconds squared: ten per cent off is as bad for a short batch as for a long
one. What is seen while serving fades with age. The steps of the calibration do not, but are stretched by how much
slower or faster serving turned out to be: batches that are all alike, which say nothing about other sizes, leave the
shape of the calibration standing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.batching.least_squares import Sums, Vector
from service.domain import Step

FADING = 0.95
"""Of all that was seen, at each batch: the last twenty decide."""

STRETCHING = 0.1
"""Of the newest batch, in the average of how much slower than calibrated batches are."""

CALIBRATION_WEIGHT = 5.0
"""In batches, for all steps of the calibration together."""

FARTHEST = 3.0
"""A batch that took this many times longer or shorter than expected counts as that many: one stall changes little.
A second one in a row is believed."""

SOLVE_EVERY = 8
"""Batches, once that many were seen: to solve costs more than to compute a short row on a GPU."""

LEAST_S = 1e-6
"""Nothing takes less; a measured zero is a clock too coarse."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds for a batch, for each of its tokens, and for each of its rows."""

    batch: float
    token: float
    row: float

    def of(self, tokens: int, rows: int, batches: float = 1.0) -> float:
        return self.batch * batches + self.token * tokens + self.row * rows

    def stretched(self, factor: float) -> Cost:
        return Cost(self.batch * factor, self.token * factor, self.row * factor)


class LatencyModel:
    """Made from the steps of a calibration, if there was one; `cost` is None until anything was measured."""

    def __init__(self, steps: Sequence[Step] = ()) -> None:
        self._seen = Sums()
        self._calibration = Sums()
        for step in steps:
            seconds = max(step.seconds, LEAST_S)
            weight = CALIBRATION_WEIGHT / len(steps) / seconds**2
            self._calibration.add(_columns(step.tokens, step.rows), seconds, weight)
        self._calibrated = _cost(self._calibration) if steps else None
        self.stretch = 1.0
        """How much slower than calibrated batches are."""
        self._was_far = False
        self._num_noted = 0
        self.cost = self._calibrated

    def note(self, tokens: int, rows: int, seconds: float) -> bool:
        """A batch was computed in so many seconds; whether `cost` was made anew."""
        usual = max(self._calibrated.of(tokens, rows), LEAST_S) if self._calibrated else float(tokens)
        seconds = self._believed(max(seconds, LEAST_S), self.predict(tokens, rows))
        if self._calibrated:
            self.stretch += STRETCHING * (seconds / usual - self.stretch)
        self._seen.fade(FADING)
        self._seen.add(_columns(tokens, rows), seconds, 1 / usual**2)
        self._num_noted += 1
        is_time = self._num_noted <= SOLVE_EVERY or self._num_noted % SOLVE_EVERY == 0
        if is_time:
            self.cost = _cost(self._seen.plus(self._calibration, self.stretch))
        return is_time

    def predict(self, tokens: int, rows: int) -> float | None:
        """Seconds that a batch will take; None when nothing was ever measured."""
        return self.cost.of(tokens, rows) if self.cost else None

    def _believed(self, seconds: float, expected: float | None) -> float:
        if not expected:
            return seconds
        nearest = min(max(seconds, expected / FARTHEST), expected * FARTHEST)
        is_first_far, self._was_far = nearest != seconds and not self._was_far, nearest != seconds
        return nearest if is_first_far else seconds


def _columns(tokens: int, rows: int) -> Vector:
    return (1.0, float(tokens), float(rows))


def _cost(sums: Sums) -> Cost:
    return Cost(*sums.solve())
