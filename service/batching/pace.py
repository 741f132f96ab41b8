"""What is known of every model's speed: its latency model and its batch budget, kept current and shown to the metrics.

Knows no queue and no replica but by name.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from itertools import chain

from service.batching import budget
from service.batching.latency import Cost, LatencyModel
from service.domain import Step
from service.metrics import Metrics

logger = logging.getLogger(__name__)

UNMEASURED_TOKENS = 512
"""The budget of a model that nobody has measured yet: one row of the greatest length."""


NEARLY_FULL = 0.9
WIDENING = 1.001
"""After running out of memory: of the budget, at each batch that is nearly full. Whoever took the memory may have gone,
so it comes back; where nobody did, finding that out costs one batch in some seven hundred, which is halved."""


class Pace:
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
        self._room[model] = max(budget.LEAST_TOKENS, min(fitting_tokens, self.budget(model)))
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
            self._budgets[model] = min(
                budget.choose_budget(cost.stretched(stretch), self._target_s) for cost in calibrated
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
        known = self._models.get(model)
        return (known and known.cost) or Cost(0.0, 0.0, 0.0)
