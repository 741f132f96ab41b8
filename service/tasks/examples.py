"""Learning from examples of labels without training: the label vectors of an embedding model are moved towards them.

A multinomial logistic regression starts from the scores that the names of the labels give, and takes one step with a
fixed curvature (Böhning, "Multinomial logistic regression algorithm", 1992):

    vectors = labels + temperature * (curvature / sqrt(num_labels) * X' Q X + ridge)^-1 X' Q (Y - P)

X are the examples minus their centre, Y their labels, P the probabilities that the names give to the labels that have
examples, and Q the weights of the examples. What keeps examples from doing harm:

- The weight of an example is the probability that its label is right, by the label's name and by the other examples,
  times the square of the share of right ones, so examples that contradict both change little.
- The weight of all examples of a label grows less than their number, up to that of the median label.
- At the centre no label gains: what all examples have in common, such as their domain, does not count for the labels
  that have most of them. Examples of one label alone change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.tasks.blend import Blend, ExampleConstants, Indexes, Numbers, are_same

Vectors = NDArray[Any]
"""In single or double precision."""
NUM_FOLDS = 4
"""The parts of the examples, each of which is predicted from the others."""
NUM_TRUST_STEPS = 50
LEAST_PROBABILITY = 1e-12
CHUNK_SCORES = 1 << 22
"""How many scores of examples are computed at once, which bounds the memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """The scores of labels that may have examples.

    `vectors` has the shape [num_labels, dimensions], `offsets` [num_labels]. `trust` is the estimated share of the
    examples whose label is right, None without examples. With `are_same` the vectors cannot tell the labels apart.
    """

    vectors: Vectors
    offsets: Vectors
    has_background: bool
    are_same: bool
    trust: float | None = None

    def scores(self, texts: Vectors) -> Vectors:
        """In place of the centred cosines, in their units, shape [num_texts, num_labels]."""
        scores: Vectors = texts @ self.vectors.T - self.offsets
        return scores if self.has_background else np.asarray(scores - scores.mean(axis=1, keepdims=True))


def learn(labels: Vectors, examples: Vectors, owners: Indexes, blend: Blend) -> Learned:
    """What the examples teach of the labels; without examples, the labels as they are.

    `labels` [num_labels, dimensions] are means over the templates, `examples` [num_examples, dimensions] unit vectors
    and `owners` [num_examples] the indices of their labels, in any order. Labels that the embedding model cannot tell
    apart by their names start with equal scores. Takes the time of three products of all examples with all labels.
    """
    has_background, names_are_same = blend.background is not None, len(labels) > 1 and are_same(labels, blend)
    if len(np.unique(owners)) < 2:
        return Learned(labels, _offsets(labels, blend), has_background, names_are_same)
    start = np.repeat(labels.mean(axis=0, keepdims=True), len(labels), axis=0) if names_are_same else labels
    own = np.einsum("ij,ij->i", examples, start[owners])
    order = np.lexsort((own, owners))  # the sums are the same in whichever order the examples come
    task = _Task(start, _offsets(start, blend), examples[order], owners[order], blend.temperature, blend.examples)
    trusts, share = _trusts(task.own_probabilities(), len(labels), blend.examples)
    trusts *= share**2
    moves = blend.temperature * task.solve(*task.step(trusts))
    offsets = task.offsets + task.centre(trusts) @ moves
    vectors, offsets = start + moves.T, offsets.astype(labels.dtype)
    return Learned(vectors.astype(labels.dtype), offsets, has_background, False, share)


def _offsets(labels: Vectors, blend: Blend) -> Vectors:
    if blend.background is None:
        return np.zeros(len(labels), dtype=labels.dtype)
    return np.asarray(blend.prior_weight * (labels @ blend.background.astype(labels.dtype)))


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """Labels and their examples, those of one label side by side."""

    labels: Vectors
    offsets: Vectors
    examples: Vectors
    owners: Indexes
    temperature: float
    constants: ExampleConstants

    def weights(self, trusts: Numbers) -> Numbers:
        """All examples of a label together weigh less than `saturation`, and at most as much as those of the median
        label that has examples."""
        per_label = np.bincount(self.owners, trusts, minlength=len(self.labels))
        together = per_label / (1.0 + per_label / self.constants.saturation)
        most = np.median(together[np.unique(self.owners)])
        return np.asarray(trusts * np.minimum(together, most)[self.owners] / per_label[self.owners])

    def centre(self, trusts: Numbers) -> Numbers:
        """The mean example, in which each label that has examples counts the same."""
        per_label = np.bincount(self.owners, trusts, minlength=len(self.labels))
        shares = trusts / per_label[self.owners]
        return np.asarray(shares @ self.examples / shares.sum())

    def step(self, trusts: Numbers, rows: Indexes | None = None) -> tuple[Numbers, Numbers]:
        """Curvature [dimensions, dimensions] and pull [dimensions, num_labels] of the examples in these rows."""
        weights, centre = self.weights(trusts), self.centre(trusts)
        has_examples = np.bincount(self.owners, minlength=len(self.labels)) > 0
        dimensions = self.examples.shape[1]
        curvature, pull = np.zeros((dimensions, dimensions)), np.zeros((dimensions, len(self.labels)))
        for part in self._parts(rows):
            centred = self.examples[part] - centre
            weighted = centred * weights[part, None]
            residuals = -_softmax(np.where(has_examples, self.logits(part), -np.inf))
            residuals[np.arange(len(part)), self.owners[part]] += 1.0
            curvature += weighted.T @ centred
            pull += weighted.T @ residuals
        return self.constants.curvature / np.sqrt(len(self.labels)) * curvature, pull

    def solve(self, curvature: Numbers, pull: Numbers) -> Numbers:
        """How far to move each label, in logits, shape [dimensions, num_labels]."""
        return np.asarray(np.linalg.solve(curvature + self.constants.ridge * np.eye(len(curvature)), pull))

    def logits(self, part: Indexes) -> Numbers:
        """By the names of the labels."""
        return np.asarray((self.examples[part] @ self.labels.T - self.offsets) / self.temperature)

    def own_probabilities(self) -> Numbers:
        """The probability of each example's label: the mean of that by its name and that after a step with the other
        folds."""
        equal = np.ones(len(self.owners))
        folds = (np.arange(len(self.owners)) - np.searchsorted(self.owners, self.owners)) % NUM_FOLDS
        folded = [np.flatnonzero(folds == fold) for fold in range(NUM_FOLDS)]
        steps = [self.step(equal, rows) for rows in folded]
        curvature, pull = np.sum([step[0] for step in steps], axis=0), np.sum([step[1] for step in steps], axis=0)
        centre, found = self.centre(equal), np.empty(len(self.owners))
        for rows, (own_curvature, own_pull) in zip(folded, steps, strict=True):
            moves = self.solve(curvature - own_curvature, pull - own_pull)
            for part in self._parts(rows):
                own, logits = (np.arange(len(part)), self.owners[part]), self.logits(part)
                moved = logits + (self.examples[part] - centre) @ moves
                found[part] = (_softmax(logits)[own] + _softmax(moved)[own]) / 2.0
        return np.asarray(np.maximum(found, LEAST_PROBABILITY))

    def _parts(self, rows: Indexes | None) -> Iterator[Indexes]:
        rows = np.arange(len(self.owners)) if rows is None else rows
        size = max(1, CHUNK_SCORES // len(self.labels))
        for start in range(0, len(rows), size):
            yield rows[start : start + size]


def _softmax(logits: Numbers) -> Numbers:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def _trusts(own_probabilities: Numbers, num_labels: int, constants: ExampleConstants) -> tuple[Numbers, float]:
    """The probability that each example's label is right, and the estimated share of right ones.

    The examples are a mixture of right ones, whose label has its probability, and wrong ones, which have any label. The
    share is fitted by expectation maximization, from a prior of `prior_right` and `prior_wrong` examples.
    """
    right, prior = constants.prior_right, constants.prior_right + constants.prior_wrong
    share, trusts = right / prior, own_probabilities
    for _ in range(NUM_TRUST_STEPS):
        is_right = share * own_probabilities
        trusts = is_right / (is_right + (1.0 - share) / num_labels)
        share = float((trusts.sum() + right) / (len(trusts) + prior))
    return trusts, share
