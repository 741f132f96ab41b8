"""Losses of fine-tuning. Each is a mean over the rows, so that a step may be divided among batches and processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from service.domain import FloatArray
from service.tools.training.samples import Target

LossName = Literal["ce", "balanced", "focal", "smooth"]
IMBALANCED = 3.0
"""Above this ratio of the most frequent to the rarest class, `balanced` is the default. A ratio of 3 counts, too."""
MAX_WEIGHT = 20.0
"""Of a rare class: the few examples of it would decide each step in which they are."""


@dataclass(frozen=True, slots=True)
class Loss:
    """`smoothing` is the share of the probability that is spread over all classes, `gamma` the exponent of the focal
    loss (Lin et al. 2017). `weights` are those of the classes, for several answers those of the positive ones.

    `variance` is that of the grades, which makes the squared error independent of their unit.
    """

    target: Target = "one"
    smoothing: float = 0.0
    gamma: float = 0.0
    weights: Tensor | None = None
    variance: float = 1.0

    def __call__(self, logits: Tensor, targets: Tensor, present: Tensor | None = None) -> Tensor:
        """The mean loss of logits [rows, classes]; `present` marks the classes that a row has, by default all."""
        if self.target == "number":
            return functional.mse_loss(logits.squeeze(-1), targets) / self.variance
        weights = None if self.weights is None else self.weights.to(logits.device)
        if self.target == "several":
            return functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)
        logs = logits.log_softmax(-1)
        right = logs.gather(-1, targets[:, None]).squeeze(-1)
        loss = -right
        if self.smoothing:
            shown = torch.ones_like(logs) if present is None else present.to(logs)
            spread = -(logs * shown).sum(-1) / shown.sum(-1)
            loss = (1 - self.smoothing) * loss + self.smoothing * spread
        if self.gamma:
            loss = (1 - right.exp()) ** self.gamma * loss
        return (loss if weights is None else loss * weights[targets]).mean()


def imbalance(counts: Sequence[int]) -> float:
    """The most frequent class against the rarest that occurs."""
    present = [count for count in counts if count]
    return max(present) / min(present) if present else 1.0


def class_weights(counts: Sequence[int]) -> Tensor:
    """Inverse frequencies with a mean of 1 over the examples, at most MAX_WEIGHT; 0 for a class without examples."""
    found = np.asarray(counts, dtype=np.float64)
    weights = np.divide(found.sum(), found, out=np.zeros_like(found), where=found > 0) / np.count_nonzero(found)
    return torch.from_numpy(np.minimum(weights, MAX_WEIGHT).astype(np.float32))


def positive_weights(held: FloatArray) -> Tensor:
    """For each class the ratio of examples without it to those with it, of targets [examples, classes]."""
    positive = held.sum(0)
    weights = (len(held) - positive) / np.maximum(positive, 1)
    return torch.from_numpy(np.clip(weights, 1.0, MAX_WEIGHT).astype(np.float32))
