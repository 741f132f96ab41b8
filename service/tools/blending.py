"""Fits the constants of a blend (`tasks.blend`) to labelled examples that both of its models have scored.

Of the constants that classification needs, one is changed at a time, to the value of a small grid around the start with
the highest mean accuracy over the data sets, if that is a gain of MIN_GAIN: few examples change little. Each data set
counts the same, whatever its size. The logistic functions of pairs and of independent labels are fitted by Newton's
method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.tasks.blend import Blend, Logistic, Logistics, Numbers, are_same, centred_cosines, label_probabilities

Indices = NDArray[np.int64]

FACTORS = (0.5, 0.7, 1.0, 1.4, 2.0)
GRIDS: dict[str, tuple[float, ...]] = {
    "prior_weight": (0.0, 0.5, 0.75, 1.0),
    "choice_power": (0.0, 1.0, 2.0, 3.0, 4.0, 6.0),
}
"""The values tried for a constant; those of the others are the FACTORS of the start."""
SEARCHED = ("temperature", "choice_weight", "choice_power", "prior_weight")
MAX_ROUNDS = 4
MIN_GAIN = 0.5
"""The least gain in mean accuracy for which a constant is changed, in standard errors of the mean accuracy."""
RIDGE = 1e-3
NEWTON_STEPS = 50
LOGIT_LIMIT = 15.0
"""Probabilities of 0 and 1, as rounded by a server, have an infinite logit."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelScores:
    """A data set of classification: `answers` [n] are indices of labels, `yes_no` [n, num_labels, 2] the logits of the
    choice model, `texts` [n, dimensions] and `labels` [num_labels, dimensions] vectors of the embedding model."""

    name: str
    answers: Indices
    yes_no: Numbers
    texts: Numbers
    labels: Numbers

    def part(self, rows: slice) -> LabelScores:
        return replace(self, answers=self.answers[rows], yes_no=self.yes_no[rows], texts=self.texts[rows])


@dataclass(frozen=True, slots=True, eq=False)
class PairScores:
    """A data set of pairs: `answers` [n] are 1 for the same meaning, `logits` [n] of the choice model's probability of
    that, `cosines` [n] of the embedding model."""

    name: str
    answers: Indices
    logits: Numbers
    cosines: Numbers

    def part(self, rows: slice) -> PairScores:
        return replace(self, answers=self.answers[rows], logits=self.logits[rows], cosines=self.cosines[rows])


def logit(probabilities: Numbers) -> Numbers:
    edge = 1.0 / (1.0 + np.exp(LOGIT_LIMIT))
    inside = np.clip(probabilities, edge, 1.0 - edge)
    return np.asarray(np.log(inside) - np.log1p(-inside))


def yes_no_logits(probabilities: Numbers, yes_probabilities: Numbers) -> Numbers:
    """Logits of yes and no with these softmax probabilities over the labels, and these of yes against no of each label,
    shape [n, num_labels, 2]. The logits of a row have an offset, which does not matter to a blend."""
    yes = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    return np.stack([yes, yes - logit(yes_probabilities)], axis=-1)


def background_of(sets: Sequence[LabelScores]) -> Numbers:
    """The mean vector of the texts; each data set counts the same."""
    return np.asarray(np.mean([one.texts.mean(axis=0) for one in sets], axis=0))


def classify(blend: Blend, scores: LabelScores, *, choice: bool = True, embedding: bool = True) -> Numbers:
    """The probabilities of the labels, shape [n, num_labels], by both models or by one of them."""
    centred = centred_cosines(scores.texts, scores.labels, blend)
    is_embedding_used = embedding and not (choice and are_same(scores.labels, blend))
    rows = [
        label_probabilities(blend, centred[row] if is_embedding_used else None, scores.yes_no[row] if choice else None)
        for row in range(len(scores.answers))
    ]
    return np.stack(rows).astype(np.float64)


def fit_labels(start: Blend, sets: Sequence[LabelScores]) -> Blend:
    """The constants of classification with the highest mean accuracy; those of the start unless others are better."""
    best = start
    reached, error = _mean_accuracy(start, sets)
    for _ in range(MAX_ROUNDS):
        before = reached
        for name in SEARCHED:
            found = [(*_mean_accuracy(one, sets), one) for one in _neighbours(best, name, getattr(start, name))]
            accuracy, _, one = max(found, key=lambda each: each[0])
            if accuracy >= reached + MIN_GAIN * error and accuracy > reached:
                best, reached = one, accuracy
        if reached == before:
            break
    return best


def _neighbours(blend: Blend, name: str, start: float) -> list[Blend]:
    changes: list[dict[str, Any]] = [{name: value} for value in _grid(name, start)]
    return [replace(blend, **change) for change in changes]


def _grid(name: str, start: float) -> tuple[float, ...]:
    return GRIDS.get(name) or tuple(start * factor for factor in FACTORS)


def _mean_accuracy(blend: Blend, sets: Sequence[LabelScores]) -> tuple[float, float]:
    """The mean over the sets, and its standard error."""
    found = [classify(blend, one).argmax(axis=1) == one.answers for one in sets]
    accuracies = [float(is_right.mean()) for is_right in found]
    variances = [share * (1.0 - share) / len(is_right) for share, is_right in zip(accuracies, found, strict=True)]
    return float(np.mean(accuracies)), float(np.sqrt(np.sum(variances)) / len(sets))


def fit_independent(blend: Blend, sets: Sequence[LabelScores]) -> Logistics:
    """The probability that a label by itself is the answer, from its centred cosine over the temperature and the logit
    of yes against no."""
    cosines, logits, answers, weights = [], [], [], []
    for one in sets:
        centred = centred_cosines(one.texts, one.labels, blend) / blend.temperature
        is_answer = np.arange(len(one.labels)) == one.answers[:, None]
        cosines.append(centred.ravel())
        logits.append((one.yes_no[..., 0] - one.yes_no[..., 1]).ravel())
        answers.append(is_answer.ravel())
        weights.append(np.full(is_answer.size, 1.0 / is_answer.size))
    return _logistics(*map(np.concatenate, (cosines, logits, answers, weights)))


def fit_pairs(sets: Sequence[PairScores]) -> Logistics:
    """The probability that two texts have the same meaning, from their cosine and the logit of the choice model."""
    return _logistics(
        np.concatenate([one.cosines for one in sets]),
        np.concatenate([one.logits for one in sets]),
        np.concatenate([one.answers for one in sets]),
        np.concatenate([np.full(len(one.answers), 1.0 / len(one.answers)) for one in sets]),
    )


def _logistics(cosines: Numbers, logits: Numbers, answers: Numbers, weights: Numbers) -> Logistics:
    """Both logistic functions: of cosine and logit, and of the cosine alone. A model that would count against its own
    score does not count."""
    bias, cosine = _newton([cosines], answers, weights)
    alone = Logistic(bias, max(cosine, 0.0))
    bias, cosine, choice = _newton([cosines, logits], answers, weights)
    if choice < 0.0:
        return Logistics(alone, alone)
    if cosine < 0.0:
        bias, choice = _newton([logits], answers, weights)
        return Logistics(Logistic(bias, 0.0, max(choice, 0.0)), alone)
    return Logistics(Logistic(bias, cosine, choice), alone)


def _newton(columns: Sequence[Numbers], answers: Numbers, weights: Numbers) -> list[float]:
    """Bias and coefficients of a logistic regression, with a small ridge on the standardized coefficients."""
    features = np.stack(columns, axis=1)
    middle, spread = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-12)
    inputs = np.column_stack([np.ones(len(features)), (features - middle) / spread])
    shares = weights / weights.sum()
    penalty = np.diag([0.0, *[RIDGE] * len(columns)])
    found = np.zeros(inputs.shape[1])
    for _ in range(NEWTON_STEPS):
        probabilities = 1.0 / (1.0 + np.exp(-np.clip(inputs @ found, -30.0, 30.0)))
        gradient = inputs.T @ (shares * (probabilities - answers)) + penalty @ found
        curvature = (inputs * (shares * np.maximum(probabilities * (1.0 - probabilities), 1e-6))[:, None]).T @ inputs
        step = np.linalg.solve(curvature + penalty + 1e-9 * np.eye(len(found)), gradient)
        found -= step
        if np.abs(step).max() < 1e-8:
            break
    coefficients = found[1:] / spread
    return [float(found[0] - coefficients @ middle), *map(float, coefficients)]


def to_json(blend: Blend) -> dict[str, Any]:
    """The content of the file that `Blend.read` reads."""
    content: dict[str, Any] = {
        "version": 1,
        "model": blend.model,
        "templates": list(blend.templates),
        **{name: _rounded(getattr(blend, name)) for name in (*SEARCHED, "same_cosine")},
        "multi_label": _logistics_to_json(blend.multi_label),
        "examples": {name: _rounded(value) for name, value in asdict(blend.examples).items()},
    }
    if blend.similarity is not None:
        content["similarity"] = _logistics_to_json(blend.similarity)
    if blend.background is not None:
        content["background"] = [round(float(value), 5) for value in blend.background]
    return content


def _logistics_to_json(logistics: Logistics) -> dict[str, Any]:
    both, alone = logistics.blend, logistics.alone
    numbers = {"bias": _rounded(both.bias), "choice": _rounded(both.choice), "cosine": _rounded(both.cosine)}
    return numbers | {"alone": {"bias": _rounded(alone.bias), "cosine": _rounded(alone.cosine)}}


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
