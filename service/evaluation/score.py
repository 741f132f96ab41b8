"""From answers to accuracy: counts, a confidence interval, confusion. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from service.evaluation.asked import Asked, EvaluationError


def report_of(asked: Sequence[Asked]) -> dict[str, Any]:
    """The numbers. Inputs that the server refused are counted, and left out of the accuracy."""
    answered = [one for one in asked if one.chosen is not None]
    refused = [one for one in asked if one.chosen is None]
    if not answered:
        raise EvaluationError(f"every input was refused: {refused[0].reason}" if refused else "there are no examples")
    if not any(one.chosen in one.example.options for one in answered):
        chosen, wanted = sorted({one.chosen or "" for one in answered}), answered[0].example.options
        raise EvaluationError(f"the model calls its classes {', '.join(chosen)}, the data set {', '.join(wanted)}")
    correct = sum(one.is_correct for one in answered)
    return {
        "examples": len(answered),
        "correct": correct,
        "accuracy": round(correct / len(answered), 4),
        "interval_95": [round(bound, 4) for bound in wilson(correct, len(answered))],
        "chance": round(sum(1 / len(set(one.example.options)) for one in answered) / len(answered), 4),
        "truncated": sum(one.truncated for one in answered),
        "refused": dict(Counter(one.reason for one in refused)),
        "confusion": confusion(answered),
    }


def confusion(asked: Iterable[Asked]) -> dict[str, dict[str, int]] | None:
    """How often each class was taken for which; None where every example has options of its own."""
    answered = [one for one in asked if one.chosen is not None]
    if len({one.example.options for one in answered}) != 1:
        return None
    counts = Counter((one.wanted, one.chosen or "") for one in answered)
    chosen = dict.fromkeys((*answered[0].example.options, *sorted({one.chosen or "" for one in answered})))
    return {wanted: {got: counts[wanted, got] for got in chosen} for wanted in answered[0].example.options}


def wilson(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson's score), which stays inside 0 to 1 for small samples too."""
    if not total:
        return 0.0, 1.0
    share, weight = correct / total, z * z / total
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / total + weight / (4 * total)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)
