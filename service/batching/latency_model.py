"""Latency model: predicts the time of a batch from its tokens and rows, and chooses the batch size.

    seconds = batch + token * tokens + row * rows

The model is fitted by least squares to the steps that a replica measured at its start and kept current while serving.
Each step is weighted by one over its usual seconds squared: ten per cent off is as bad for a short batch as for a long
one. Batches seen while serving fade with age. The steps of the calibration do not fade, but are stretched by how much
slower or faster serving turned out to be: batches that are all alike say nothing about other sizes, and leave the shape
of the calibration as it is.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from service.domain import Step
from service.metrics import Metrics

logger = logging.getLogger(__name__)

# the model of one checkpoint

FADING = 0.95
"""Factor on the weight of everything seen, per batch: about the last twenty batches decide."""

STRETCHING = 0.1
"""Weight of the newest batch in the moving average `stretch`. Without it the batch size does not follow a device that
became slower: at half the calibrated speed and 60 % load the median answer takes 1.13 s instead of 0.76 s (simulated,
0.1 s a batch and 2.6 ms a token, target 0.5 s)."""

CALIBRATION_WEIGHT = 5.0
"""Weight of all steps of the calibration together, in batches."""

MAX_SURPRISE = 3.0
"""A batch that took this many times longer or shorter than predicted counts as that many, so one stall changes little.
A second one in a row is believed."""

SOLVE_EVERY = 8
"""Batches between two fits, after the first that many: a fit costs more than a short row on a GPU."""

MIN_S = 1e-6
"""No step takes less: a measured zero means that the clock is too coarse."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a batch, of each of its tokens, and of each of its rows."""

    batch: float
    token: float
    row: float

    def of(self, tokens: int, rows: int, batches: float = 1.0) -> float:
        return self.batch * batches + self.token * tokens + self.row * rows

    def stretched(self, factor: float) -> Cost:
        return Cost(self.batch * factor, self.token * factor, self.row * factor)


class LatencyModel:
    """Starts from the steps of a calibration, if there was one; `cost` is None until a time was measured."""

    def __init__(self, steps: Sequence[Step] = ()) -> None:
        self._seen = Sums()
        self._calibration = Sums()
        for step in steps:
            seconds = max(step.seconds, MIN_S)
            weight = CALIBRATION_WEIGHT / len(steps) / seconds**2
            self._calibration.add(_columns(step.tokens, step.rows), seconds, weight)
        self._calibrated = _cost(self._calibration) if steps else None
        self.stretch = 1.0
        """Times of batches over their calibrated times, a moving average."""
        self._was_surprising = False
        self._num_noted = 0
        self.cost = self._calibrated

    def note(self, tokens: int, rows: int, seconds: float) -> bool:
        """Takes the time of a batch; returns whether `cost` was fitted again."""
        usual = max(self._calibrated.of(tokens, rows), MIN_S) if self._calibrated else float(tokens)
        seconds = self._clip(max(seconds, MIN_S), self.predict(tokens, rows))
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
        """Seconds of a batch; None while nothing was measured."""
        return self.cost.of(tokens, rows) if self.cost else None

    def _clip(self, seconds: float, expected: float | None) -> float:
        if not expected:
            return seconds
        nearest = min(max(seconds, expected / MAX_SURPRISE), expected * MAX_SURPRISE)
        is_first, self._was_surprising = nearest != seconds and not self._was_surprising, nearest != seconds
        return nearest if is_first else seconds


# the size of a batch

ENOUGH = 0.95
"""Share of the throughput of an endless batch at which a larger batch is not worth its latency, by default."""
MIN_BATCH_TOKENS = 64
MAX_BATCH_TOKENS = 16_384

MIN_KNEE_TOKENS = 512
"""Where the target allows it the batch is not below this: so small a batch is not worth it on any device, but a machine
that was busy while it was measured may look as if it were."""

TYPICAL_ROW_TOKENS = 64
"""Shares out the cost of a row among its tokens."""

HANDLING_S = 0.0005
"""Cost of a batch outside the engine: two messages through the pipe, and the event loop."""

UNMEASURED_TOKENS = 512
"""Batch size of a model that was not measured yet: one row of the greatest length."""


def choose_budget(cost: Cost, target_s: float, efficiency: float = ENOUGH) -> int:
    """Tokens of a full batch: as few as use the device well, and no more than the target allows.

    A batch has a fixed cost, so throughput grows with its size, ever more slowly, while latency grows steadily. The
    knee is the size that reaches `efficiency` of the throughput of an endless batch. Where even the smallest batch
    takes longer than the target, it is the smallest.
    """
    per_batch = cost.batch + HANDLING_S
    per_token = max(cost.token + cost.row / TYPICAL_ROW_TOKENS, 1e-12)
    knee = efficiency / (1 - efficiency) * per_batch / per_token
    in_time = (target_s - per_batch) / per_token
    return int(min(max(min(max(knee, MIN_KNEE_TOKENS), in_time), MIN_BATCH_TOKENS), MAX_BATCH_TOKENS))


# all models

NEARLY_FULL = 0.9
WIDENING = 1.001
"""After running out of memory the budget grows by this factor with each batch that is nearly full. Memory that another
process took may be free again; where it is not, finding out costs one batch in about seven hundred, which is halved."""


class LatencyModels:
    """The latency model and the token budget of every model, kept current and shown in the metrics.

    `max_batch_tokens` above zero is the budget of every model; otherwise it is chosen where `calibrate` has measured.
    """

    def __init__(
        self, *, metrics: Metrics, max_batch_tokens: int = 0, target_s: float = 0.5, efficiency: float = ENOUGH
    ) -> None:
        self._metrics = metrics
        self._fixed = max_batch_tokens
        self._target_s = target_s
        self._efficiency = efficiency
        self._models: dict[str, LatencyModel] = {}
        self._steps: dict[str, dict[str, Sequence[Step]]] = {}
        self._calibrated: dict[str, list[Cost]] = {}
        self._budgets: dict[str, int] = {}
        self._fitting: dict[str, float] = {}

    def calibrate(self, replica: str, model: str, steps: Sequence[Step], fitting_tokens: int | None = None) -> None:
        """Takes what a replica measured after it became ready; it replaces what the replica measured before.

        `fitting_tokens` is None unless the replica ran out of memory.
        """
        if steps:
            by_replica = self._steps.setdefault(model, {})
            by_replica[replica] = steps
            self._refit(model, by_replica)
        if fitting_tokens is not None:
            self.limit_memory(model, fitting_tokens)

    def budget(self, model: str) -> int:
        """Tokens of a full batch."""
        wanted = self._fixed or self._budgets.get(model, UNMEASURED_TOKENS)
        return min(wanted, int(self._fitting.get(model, wanted)))

    def limit_memory(self, model: str, fitting_tokens: int) -> None:
        """A batch ran out of memory; `fitting_tokens` fit. The limit holds for all replicas, now and later."""
        self._fitting[model] = max(MIN_BATCH_TOKENS, min(fitting_tokens, self.budget(model)))
        logger.warning("batch budget lowered: out of memory", extra={"model": model, "tokens": self.budget(model)})
        self._show(model)

    def note(self, model: str, tokens: int, rows: int, seconds: float) -> None:
        """Takes the time of a batch."""
        if model not in self._models:
            self._models[model] = LatencyModel()
        if tokens >= NEARLY_FULL * self._fitting.get(model, math.inf):
            self._fitting[model] *= WIDENING
        latency_model = self._models[model]
        expected = latency_model.predict(tokens, rows)
        if latency_model.note(tokens, rows, seconds):
            self._choose(model)
            self._show(model)
        if expected:
            self._metrics.predicted(model, seconds / expected)

    def predict(self, model: str, tokens: int, rows: int) -> float | None:
        """Seconds in which one replica computes these rows, in full batches; None while nothing was measured."""
        latency_model = self._models.get(model)
        if latency_model is None or latency_model.cost is None:
            return None
        return latency_model.cost.of(tokens, rows, batches=max(1.0, tokens / self.budget(model)))

    def _refit(self, model: str, by_replica: Mapping[str, Sequence[Step]]) -> None:
        is_first = model not in self._models
        self._models[model] = LatencyModel(list(chain(*by_replica.values())))
        self._calibrated[model] = [cost for steps in by_replica.values() if (cost := LatencyModel(steps).cost)]
        self._choose(model)
        self._show(model)
        level = logging.INFO if is_first else logging.DEBUG
        logger.log(level, "batch budget chosen", extra=self._fields(model))

    def _choose(self, model: str) -> None:
        """Takes the shape of the calibration, as serving may have seen batches of one size only, and the speed of
        serving. Any replica may take a batch, so the slowest one decides."""
        if calibrated := self._calibrated.get(model):
            stretch = self._models[model].stretch
            self._budgets[model] = min(
                choose_budget(cost.stretched(stretch), self._target_s, self._efficiency) for cost in calibrated
            )

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
        latency_model = self._models.get(model)
        return (latency_model and latency_model.cost) or Cost(0.0, 0.0, 0.0)


# least squares

Vector = tuple[float, float, float]

_SUPPORTS = ((0, 1, 2), (0, 1), (1, 2), (0, 2), (1,), (0,), (2,))
"""Of sets that explain the data equally well the first is taken."""

_SINGULAR = 1e-9
"""A smaller pivot, of columns scaled to one, is rounding: the columns are the same."""

_BETTER = 1e-9
"""Share of the total by which a later set must be better than an earlier one."""


@dataclass(slots=True)
class Sums:
    """Least squares over three columns with no coefficient below zero, from running sums: exact, and cheap at any
    length.

    Holds the weighted sums of x * x, x * y and y * y over all samples (x, y). With three columns there are seven sets
    of coefficients that may be above zero; the best of their unconstrained solutions that has none below zero is the
    answer (Lawson and Hanson, "Solving Least Squares Problems", chapter 23). numpy gives the same answers in 320 us
    against 49 us, on a path that runs every few batches.
    """

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
        """Multiplies the weight of all samples so far."""
        self.gram = [[factor * each for each in row] for row in self.gram]
        self.moment = [factor * each for each in self.moment]
        self.square *= factor

    def plus(self, other: Sums, stretch: float) -> Sums:
        """With the samples of `other`, their y multiplied by `stretch`."""
        return Sums(
            [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(self.gram, other.gram, strict=True)],
            [a + stretch * b for a, b in zip(self.moment, other.moment, strict=True)],
            self.square + stretch * stretch * other.square,
        )

    def solve(self) -> Vector:
        """The coefficients; all zero when there are no samples."""
        best: Vector = (0.0, 0.0, 0.0)
        smallest = self.square
        for support in _SUPPORTS:
            found = self._solve_on(support)
            if found is None or min(found) < 0:
                continue
            error = self._error(found)
            if error < smallest - _BETTER * self.square:
                best, smallest = found, error
            if len(support) == 3:
                break  # no constraint binds: nothing can be better
        return best

    def _solve_on(self, support: tuple[int, ...]) -> Vector | None:
        """The unconstrained solution with only these coefficients; None when the samples do not determine it."""
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


def _columns(tokens: int, rows: int) -> Vector:
    return (1.0, float(tokens), float(rows))


def _cost(sums: Sums) -> Cost:
    return Cost(*sums.solve())
