"""The canary: rows whose answer is known, computed now and then to see whether a device still computes what it did.

A device may go wrong and raise nothing. Knows no pipe and no torch: the child asks at which time to look, the parent
compares what its children answer.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping

import numpy as np

from service.domain import FloatArray
from service.errors import StartupError
from service.replicas.runner import Runner

logger = logging.getLogger(__name__)

Answers = Mapping[str, FloatArray]
"""By model name."""

EXACT = 1e-3
ROUNDED = 0.1
"""How far an answer may be from the known one, in lengths of that: in float32, and in fewer bits. Kernels and their
order of adding differ between devices; what is wrong is far beyond."""


class Canary:
    """In the child. Made after the warm-up, when the known answers are found."""

    def __init__(
        self, engines: Mapping[str, Runner], interval_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engines = engines
        self._interval_s = interval_s
        self._clock = clock
        self.answers: Answers = {name: _answer(engine) for name, engine in engines.items()}
        self._next = clock() + interval_s

    def wait_s(self) -> float | None:
        """Until it is time; None when that never is."""
        return max(0.0, self._next - self._clock()) if self._interval_s else None

    def wrong_model(self) -> str | None:
        """Looks after all models now; the name of one that answers otherwise than it did."""
        self._next = self._clock() + self._interval_s
        return next((name for name, engine in self._engines.items() if self._is_wrong(name, engine)), None)

    def _is_wrong(self, name: str, engine: Runner) -> bool:
        try:
            return is_wrong(_answer(engine), self.answers[name], engine.precision)
        except Exception:  # whatever it is, these rows were computed before
            logger.exception("canary failed", extra={"model": name})
            return True


class ReferenceAnswers:
    """In the parent: the first answers heard of each model in each precision, which all others have to agree with."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str], tuple[str, FloatArray]] = {}

    def compare(self, replica: str, precisions: Mapping[str, str], answers: Answers) -> None:
        """Raises WrongAnswer."""
        for model, answer in answers.items():
            precision = precisions[model]
            other, known = self._first.setdefault((model, precision), (replica, answer))
            if is_wrong(answer, known, precision):
                raise WrongAnswer(f"{replica}: {model} in {precision} answers otherwise than on {other}")


class WrongAnswer(StartupError):
    """One of two devices is broken, or their software."""


def is_wrong(found: FloatArray, known: FloatArray, precision: str) -> bool:
    return distance(found, known) > (EXACT if precision == "float32" else ROUNDED)


def distance(found: FloatArray, known: FloatArray) -> float:
    """The length of the difference, in lengths of what is known."""
    if found.shape != known.shape or not np.isfinite(found).all():
        return math.inf
    length = float(np.linalg.norm(known))
    return float(np.linalg.norm(found - known)) / length if length else float(found.any())


def _answer(engine: Runner) -> FloatArray:
    return np.concatenate([output.scores for output in engine.prepare(engine.canary())()], axis=None, dtype=np.float32)
