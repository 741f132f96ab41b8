"""The canary: rows whose answer is known, computed now and then against a device that is silently wrong.

A device may become faulty and raise nothing. The worker process compares with its own first answers; the parent
compares the first answers of its replicas with each other.
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
"""Largest relative distance from the known answer, in float32 and in fewer bits. Kernels and their order of summation
differ between devices; a faulty device is far beyond these."""


class Canary:
    """In the worker process. Made after the warm-up, when the known answers are computed."""

    def __init__(
        self, engines: Mapping[str, Runner], interval_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engines = engines
        self._interval_s = interval_s
        self._clock = clock
        self.answers: Answers = {name: _answer(engine) for name, engine in engines.items()}
        self._next = clock() + interval_s

    def wait_s(self) -> float | None:
        """Seconds until the next run; None when there is none."""
        return max(0.0, self._next - self._clock()) if self._interval_s else None

    def wrong_model(self) -> str | None:
        """Runs the canary of every model; the name of one that answers differently, or None."""
        self._next = self._clock() + self._interval_s
        return next((name for name, engine in self._engines.items() if self._is_wrong(name, engine)), None)

    def _is_wrong(self, name: str, engine: Runner) -> bool:
        try:
            return is_wrong(_answer(engine), self.answers[name], engine.precision)
        except Exception:  # these rows were computed before
            logger.exception("canary failed", extra={"model": name})
            return True


class ReferenceAnswers:
    """In the parent: the first answers of each model in each precision, with which all others must agree."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str], tuple[str, FloatArray]] = {}

    def forget(self) -> None:
        """The first answers may be wrong ones: the next become the first."""
        self._first.clear()

    def compare(self, replica: str, precisions: Mapping[str, str], answers: Answers) -> None:
        """Raises WrongAnswer."""
        for model, answer in answers.items():
            precision = precisions[model]
            other, known = self._first.setdefault((model, precision), (replica, answer))
            if is_wrong(answer, known, precision):
                raise WrongAnswer(f"{replica}: {model} in {precision} answers differently than on {other}")


class WrongAnswer(StartupError):
    """Two replicas disagree: one device is faulty, or its software."""


def is_wrong(found: FloatArray, known: FloatArray, precision: str) -> bool:
    return distance(found, known) > (EXACT if precision == "float32" else ROUNDED)


def distance(found: FloatArray, known: FloatArray) -> float:
    """The length of the difference over the length of the known answer."""
    if found.shape != known.shape or not np.isfinite(found).all():
        return math.inf
    length = float(np.linalg.norm(known))
    return float(np.linalg.norm(found - known)) / length if length else float(found.any())


def _answer(engine: Runner) -> FloatArray:
    outputs = [output for batch in engine.canary() for output in engine.prepare(batch)()]
    return np.concatenate([output.scores for output in outputs], axis=None, dtype=np.float32)
