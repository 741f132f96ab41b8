"""Converts the outputs of a head to scores, and ranks labels by them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.checkpoints.heads import Activation
from service.domain import FloatArray

MAX_FEW = 64
"""Up to as many numbers, Python is faster than numpy, whose per-call overhead exceeds the work on them."""


@dataclass(frozen=True, slots=True)
class LabelScore:
    label: str
    score: float


def softmax(logits: FloatArray) -> FloatArray:
    """Softmax of a vector in float64."""
    if len(logits) > MAX_FEW:
        powers = np.exp(logits.astype(np.float64) - float(logits.max()))
        return np.asarray(powers / powers.sum(), dtype=np.float32)
    exact = logits.tolist()
    highest = max(exact)
    weights = [math.exp(logit - highest) for logit in exact]
    total = math.fsum(weights)
    return np.asarray([weight / total for weight in weights], dtype=np.float32)


def sigmoid(logits: NDArray[np.float64] | FloatArray) -> FloatArray:
    """Sigmoid of each logit in float64."""
    logits = logits.astype(np.float64)
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logits, -500, 500))), dtype=np.float32)


def activate(outputs: FloatArray, activation: Activation) -> FloatArray:
    """The scores of a head's outputs, a vector; "identity" returns them unchanged."""
    if activation == "identity":
        return outputs
    return softmax(outputs) if activation == "softmax" else sigmoid(outputs)


def rank(labels: Sequence[str], scores: FloatArray, top_k: int | None = None) -> tuple[LabelScore, ...]:
    """The `top_k` best labels with their scores, best first; equal scores keep the order of the labels."""
    if len(labels) != len(scores):
        raise ValueError(f"{len(labels)} labels, but {len(scores)} scores")
    if len(scores) > MAX_FEW:
        best = np.argsort(-scores, kind="stable")[:top_k]
        return tuple(LabelScore(labels[index], float(scores[index])) for index in best.tolist())
    pairs = [LabelScore(label, score) for label, score in zip(labels, scores.tolist(), strict=True)]
    return tuple(sorted(pairs, key=lambda pair: -pair.score)[:top_k])
