"""Measures of predictions: accuracy, F1 of each class, rank correlation, their intervals, and what is suspicious."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.domain import FloatArray
from service.tools.scoring import pearson, spearman, wilson
from service.tools.training.samples import Target

Indices = NDArray[np.int64]
NUM_RESAMPLES = 1000
TAKES_ALL, TRUE_SHARE = 0.98, 0.9
"""One class takes all where it has this share of the predictions, but less of the answers."""


def measure(target: Target, logits: FloatArray, targets: NDArray[Any], num_classes: int) -> dict[str, float]:
    """The measures by which runs are compared, as shares from 0 to 1; `spearman` from -1 to 1.

    `num_classes` 0: the classes differ between the rows, so there is no F1.
    """
    if target == "number":
        numbers, grades = logits.reshape(-1).astype(np.float64), targets.astype(np.float64)
        return {"spearman": spearman(numbers, grades), "pearson": pearson(numbers, grades)}
    if target == "several":
        predicted, held = logits > 0, targets > 0.5
        return {
            "accuracy": float((predicted == held).all(axis=1).mean()),
            "macro_f1": float(np.mean(f1_of_sets(predicted, held))),
        }
    chosen = logits.argmax(-1)
    found = {"accuracy": float((chosen == targets).mean())}
    if num_classes:
        found["macro_f1"] = macro_f1(chosen, targets, num_classes)
    return found


def f1_of_sets(predicted: NDArray[np.bool_], held: NDArray[np.bool_]) -> FloatArray:
    """F1 of each column; 0 where it is neither predicted nor held."""
    both = (predicted & held).sum(0)
    total = predicted.sum(0) + held.sum(0)
    return np.asarray(np.divide(2.0 * both, total, out=np.zeros(len(both)), where=total > 0), dtype=np.float32)


def macro_f1(chosen: Indices, targets: Indices, num_classes: int) -> float:
    """The mean F1 of the classes that occur among the answers or the predictions."""
    scores = [row["f1"] for row in per_class(chosen, targets, num_classes) if row["support"] or row["predicted"]]
    return float(np.mean(scores)) if scores else 0.0


def per_class(chosen: Indices, targets: Indices, num_classes: int) -> list[dict[str, float]]:
    """Precision, recall, F1, support and number of predictions of each class."""
    right = np.bincount(targets[chosen == targets], minlength=num_classes)
    support, predicted = np.bincount(targets, minlength=num_classes), np.bincount(chosen, minlength=num_classes)
    return [
        {
            "precision": right[index] / max(1, predicted[index]),
            "recall": right[index] / max(1, support[index]),
            "f1": 2 * right[index] / max(1, predicted[index] + support[index]),
            "support": int(support[index]),
            "predicted": int(predicted[index]),
        }
        for index in range(num_classes)
    ]


def intervals(
    target: Target, logits: FloatArray, targets: NDArray[Any], num_classes: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % intervals of `measure`: Wilson's of an accuracy, else of a bootstrap over the examples."""
    whole = measure(target, logits, targets, num_classes)
    draw = np.random.default_rng(seed)
    size = len(targets)
    sampled = [draw.integers(0, size, size) for _ in range(NUM_RESAMPLES)]
    found: dict[str, tuple[float, float]] = {}
    if others := [name for name in whole if name != "accuracy"]:
        each = [measure(target, logits[rows], targets[rows], num_classes) for rows in sampled]
        for name in others:
            low, high = np.percentile([one[name] for one in each], (2.5, 97.5))
            found[name] = (float(low), float(high))
    if "accuracy" in whole:
        found["accuracy"] = wilson(round(whole["accuracy"] * size), size)
    return found


def warnings(chosen: Indices, targets: Indices, labels: Sequence[str]) -> list[str]:
    """What makes a classifier useless although its accuracy may look good."""
    counts = np.bincount(targets, minlength=len(labels))
    top = int(counts.argmax())
    share = counts[top] / len(targets)
    found = []
    low, _ = wilson(int((chosen == targets).sum()), len(targets))
    if low <= share:
        found.append(f"the result is at chance: answering {labels[top]} to everything is right in {share:.1%}")
    most = np.bincount(chosen, minlength=len(labels))
    taken = int(most.argmax())
    if most[taken] >= TAKES_ALL * len(chosen) and counts[taken] < TRUE_SHARE * len(targets):
        found.append(f"one class takes all: {labels[taken]} is the answer to {most[taken] / len(chosen):.1%}")
    if found:
        found.append("try a higher --learning-rate, --lr find, more --epochs, --loss balanced or --form choice")
    return found
