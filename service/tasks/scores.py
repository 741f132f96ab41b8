"""From logits to probabilities, and from probabilities to labels in order. Knows no tasks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.domain import FloatArray


@dataclass(frozen=True, slots=True)
class LabelScore:
    label: str
    score: float


def softmax(logits: FloatArray) -> FloatArray:
    """Over a vector, computed in float64."""
    exact = logits.astype(np.float64)
    weights = np.exp(exact - exact.max())
    return np.asarray(weights / weights.sum(), dtype=np.float32)


def sigmoid(logits: NDArray[np.float64]) -> FloatArray:
    """Of each logit by itself."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logits, -500, 500))), dtype=np.float32)


def ranked(labels: Iterable[str], scores: FloatArray) -> tuple[LabelScore, ...]:
    """Labels with their scores, best first; equal scores keep the order of the labels."""
    pairs = [LabelScore(label, float(score)) for label, score in zip(labels, scores, strict=True)]
    return tuple(sorted(pairs, key=lambda pair: -pair.score))
