"""Converts logits to probabilities, and ranks labels by them."""

from __future__ import annotations

import math
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
    """Softmax of a vector in float64. Without numpy: its per-call overhead exceeds the work on a few numbers."""
    exact = logits.tolist()
    highest = max(exact)
    weights = [math.exp(logit - highest) for logit in exact]
    total = math.fsum(weights)
    return np.asarray([weight / total for weight in weights], dtype=np.float32)


def sigmoid(logits: NDArray[np.float64]) -> FloatArray:
    """Sigmoid of each logit."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logits, -500, 500))), dtype=np.float32)


def rank(labels: Iterable[str], scores: FloatArray) -> tuple[LabelScore, ...]:
    """Labels with their scores, best first; equal scores keep the order of the labels."""
    pairs = [LabelScore(label, score) for label, score in zip(labels, scores.tolist(), strict=True)]
    return tuple(sorted(pairs, key=lambda pair: -pair.score))
