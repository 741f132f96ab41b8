"""How long a batch takes: seconds = a + b * tokens + c * rows, fitted to measured steps and kept current while serving.

Knows no queue, no model's name and no clock: it is told what was measured and says what it expects.

Each step is weighed by one over its usual seconds squared: ten per cent off is as bad for a short batch as for a long
one. What is seen while serving fades with age. The steps of the calibration do not, but are stretched by how much
slower or faster serving turned out to be: batches that are all alike, which say nothing about other sizes, leave the
shape of the calibration standing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from service.domain import Step
from service.metrics import Metrics

Vector = tuple[float, float, float]

_SUPPORTS = ((0, 1, 2), (0, 1), (1, 2), (0, 2), (1,), (0,), (2,))
"""Of sets that explain the data equally well the first is taken."""

_SINGULAR = 1e-9
"""A pivot of columns scaled to one; below it they are the same column, but for rounding."""

_BETTER = 1e-9
"""Of the whole, by which a later set must be better than an earlier one."""


@dataclass(slots=True)
class Sums:
    """Weighted sums of x * x, x * y and y * y over all rows (x, y) that were added."""

    gram: list[list[float]] = field(default_factory=lambda: [[0.0] * 3 for _ in range(3)])
    moment: list[float] = field(default_factory=lambda: [0.0] * 3)
    square: float = 0.0

    def add(self, x: Vector, y: float, weight: float) -> None:
        for i in range(3):
            self.moment[i] += weight * x[i] * y
            for j in range(3):
                self.gram[i][j] += weight * x[i] * x[j]
        self.square += weight * y * y

    def fade(self, factor: float) -> None:
        """All rows so far weigh `factor` times what they did."""
        self.gram = [[factor * each for each in row] for row in self.gram]
        self.moment = [factor * each for each in self.moment]
        self.square *= factor

    def plus(self, other: Sums, stretch: float) -> Sums:
        """With the rows of `other`, whose y are `stretch` times what they were."""
        return Sums(
            [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(self.gram, other.gram, strict=True)],
            [a + stretch * b for a, b in zip(self.moment, other.moment, strict=True)],
            self.square + stretch * stretch * other.square,
        )

    def solve(self) -> Vector:
        """The coefficients; all zero when nothing was added."""
        best: Vector = (0.0, 0.0, 0.0)
        least = self.square
        for support in _SUPPORTS:
            found = self._on(support)
            if found is None or min(found) < 0:
                continue
            error = self._error(found)
            if error < least - _BETTER * self.square:
                best, least = found, error
            if len(support) == 3:
                break  # no constraint binds: nothing can be better
        return best

    def _on(self, support: tuple[int, ...]) -> Vector | None:
        """The plain solution with only these coefficients; None when the data do not determine it."""
        scales = [self.gram[i][i] ** 0.5 for i in support]
        if min(scales) == 0.0:
            return None
        rows = [
            [self.gram[i][j] / (a * b) for j, b in zip(support, scales, strict=True)] + [self.moment[i] / a]
            for i, a in zip(support, scales, strict=True)
        ]
        solved = _eliminate(rows)
        if solved is None:
            return None
        found = [0.0, 0.0, 0.0]
        for i, value, scale in zip(support, solved, scales, strict=True):
            found[i] = value / scale
        return (found[0], found[1], found[2])

    def _error(self, x: Vector) -> float:
        quadratic = sum(x[i] * self.gram[i][j] * x[j] for i in range(3) for j in range(3))
        return self.square - 2 * sum(a * b for a, b in zip(x, self.moment, strict=True)) + quadratic


def _eliminate(rows: list[list[float]]) -> list[float] | None:
    """Solves a positive definite system, its right side in the last column; None when it is singular."""
    size = len(rows)
    for i in range(size):
        if rows[i][i] < _SINGULAR:
            return None
        for k in range(i + 1, size):
            factor = rows[k][i] / rows[i][i]
            rows[k] = [a - factor * b for a, b in zip(rows[k], rows[i], strict=True)]
    out = [0.0] * size
    for i in reversed(range(size)):
        out[i] = (rows[i][size] - sum(rows[i][j] * out[j] for j in range(i + 1, size))) / rows[i][i]
    return out


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


ENOUGH = 0.95
LEAST_TOKENS = 64
MOST_TOKENS = 16_384

LEAST_KNEE = 512
"""Where the target allows it, no knee is below this: so small a batch is never worth it on any device, but a machine
that was busy while it was measured may well look as if it were."""

TYPICAL_ROW = 64
"""Tokens; it only shares out the cost of a row among its tokens."""

HANDLING_S = 0.0005
"""What a batch costs outside of the engine: two messages through the pipe and the event loop."""


def choose_budget(cost: Cost, target_s: float) -> int:
    """Tokens of a full batch; where even the least takes longer than the target, the least."""
    per_batch = cost.batch + HANDLING_S
    per_token = max(cost.token + cost.row / TYPICAL_ROW, 1e-12)
    knee = ENOUGH / (1 - ENOUGH) * per_batch / per_token
    in_time = (target_s - per_batch) / per_token
    return int(min(max(min(max(knee, LEAST_KNEE), in_time), LEAST_TOKENS), MOST_TOKENS))


logger = logging.getLogger(__name__)

UNMEASURED_TOKENS = 512
"""The budget of a model that nobody has measured yet: one row of the greatest length."""


NEARLY_FULL = 0.9
WIDENING = 1.001
"""After running out of memory: of the budget, at each batch that is nearly full. Whoever took the memory may have gone,
so it comes back; where nobody did, finding that out costs one batch in some seven hundred, which is halved."""


class LatencyModels:
    """`max_batch_tokens` above zero is the budget of every model; else it is chosen where `calibrate` has measured."""

    def __init__(self, *, metrics: Metrics, max_batch_tokens: int = 0, target_s: float = 0.5) -> None:
        self._metrics = metrics
        self._fixed = max_batch_tokens
        self._target_s = target_s
        self._models: dict[str, LatencyModel] = {}
        self._steps: dict[str, dict[str, Sequence[Step]]] = {}
        self._calibrated: dict[str, list[Cost]] = {}
        self._budgets: dict[str, int] = {}
        self._room: dict[str, float] = {}

    def calibrate(self, replica: str, model: str, steps: Sequence[Step], fitting_tokens: int | None = None) -> None:
        """A replica has become ready, perhaps again: what it measured replaces what it measured before.

        `fitting_tokens` is None unless it met the end of its memory.
        """
        if steps:
            by_replica = self._steps.setdefault(model, {})
            by_replica[replica] = steps
            self._refit(model, by_replica)
        if fitting_tokens is not None:
            self.ran_out(model, fitting_tokens)

    def budget(self, model: str) -> int:
        """Tokens of a full batch."""
        wanted = self._fixed or self._budgets.get(model, UNMEASURED_TOKENS)
        return min(wanted, int(self._room.get(model, wanted)))

    def ran_out(self, model: str, fitting_tokens: int) -> None:
        """A batch found no memory; so many tokens do. That holds for all replicas, and for those to come."""
        self._room[model] = max(LEAST_TOKENS, min(fitting_tokens, self.budget(model)))
        logger.warning("batch budget lowered: out of memory", extra={"model": model, "tokens": self.budget(model)})
        self._show(model)

    def note(self, model: str, tokens: int, rows: int, seconds: float) -> None:
        """A batch was computed."""
        if model not in self._models:
            self._models[model] = LatencyModel()
        if tokens >= NEARLY_FULL * self._room.get(model, math.inf):
            self._room[model] *= WIDENING
        known = self._models[model]
        if expected := known.predict(tokens, rows):
            self._metrics.predicted(model, seconds / expected)
        if known.note(tokens, rows, seconds):
            self._choose(model)
            self._show(model)

    def predict(self, model: str, tokens: int, rows: int) -> float | None:
        """Seconds in which one replica computes so much, in full batches; None where nothing was measured."""
        known = self._models.get(model)
        if known is None or known.cost is None:
            return None
        return known.cost.of(tokens, rows, batches=max(1.0, tokens / self.budget(model)))

    def _refit(self, model: str, by_replica: Mapping[str, Sequence[Step]]) -> None:
        is_first = model not in self._models
        self._models[model] = LatencyModel(list(chain(*by_replica.values())))
        self._calibrated[model] = [cost for steps in by_replica.values() if (cost := LatencyModel(steps).cost)]
        self._choose(model)
        self._show(model)
        level = logging.INFO if is_first else logging.DEBUG
        logger.log(level, "batch budget chosen", extra=self._fields(model))

    def _choose(self, model: str) -> None:
        """The shape is that of the calibration, as serving may have seen batches of one size only; how slow everything
        is by now is what serving has seen. A batch may be taken by any replica: the slowest must be able to bear it."""
        if calibrated := self._calibrated.get(model):
            stretch = self._models[model].stretch
            self._budgets[model] = min(choose_budget(cost.stretched(stretch), self._target_s) for cost in calibrated)

    def _fields(self, model: str) -> dict[str, object]:
        cost = self._cost(model)
        return {
            "model": model,
            "tokens": self.budget(model),
            "is_fixed": bool(self._fixed),
            "ms_per_batch": round(cost.batch * 1e3, 3),
            "us_per_token": round(cost.token * 1e6, 3),
            "us_per_row": round(cost.row * 1e6, 3),
            "ms_when_full": round((self.predict(model, self.budget(model), 1) or 0.0) * 1e3, 1),
        }

    def _show(self, model: str) -> None:
        cost = self._cost(model)
        self._metrics.costs(model, self.budget(model), batch_s=cost.batch, token_s=cost.token, row_s=cost.row)

    def _cost(self, model: str) -> Cost:
        known = self._models.get(model)
        return (known and known.cost) or Cost(0.0, 0.0, 0.0)
