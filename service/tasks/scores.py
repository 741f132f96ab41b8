"""Converts the outputs of a head to scores, and ranks labels by them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.checkpoints.heads import Activation
from service.domain import FloatArray

MAX_FEW = 32
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
        best = _best(scores, top_k or len(scores)).tolist()
        return tuple(LabelScore(labels[index], score) for index, score in zip(best, scores[best].tolist(), strict=True))
    pairs = [LabelScore(label, score) for label, score in zip(labels, scores.tolist(), strict=True)]
    return tuple(sorted(pairs, key=lambda pair: -pair.score)[:top_k])


def _best(scores: FloatArray, top_k: int) -> NDArray[np.int64]:
    """The indices of the `top_k` highest scores, highest first. Sorts only scores that can be among them."""
    indices = np.arange(len(scores))
    if top_k < len(scores):
        lowest = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
        indices = np.flatnonzero(scores >= lowest)
    return np.asarray(indices[np.argsort(-scores[indices], kind="stable")[:top_k]])
