"""Measures, against scikit-learn's, and what makes a result suspicious."""

from __future__ import annotations

import numpy as np
import pytest

from service.tools.scoring import spearman
from service.tools.training.measures import intervals, macro_f1, measure, per_class, warnings

DRAW = np.random.default_rng(0)
TARGETS = DRAW.integers(0, 4, 200)
CHOSEN = np.where(DRAW.random(200) < 0.6, TARGETS, DRAW.integers(0, 4, 200))


def test_macro_f1_and_the_classes_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    assert macro_f1(CHOSEN, TARGETS, 4) == pytest.approx(metrics.f1_score(TARGETS, CHOSEN, average="macro"))
    precision, recall, f1, support = metrics.precision_recall_fscore_support(TARGETS, CHOSEN)
    rows = per_class(CHOSEN, TARGETS, 4)
    for name, wanted in (("precision", precision), ("recall", recall), ("f1", f1), ("support", support)):
        assert [row[name] for row in rows] == pytest.approx(wanted.tolist())


def test_a_class_that_never_occurs_does_not_count() -> None:
    assert macro_f1(np.array([0, 1]), np.array([0, 1]), 5) == 1.0


def test_several_labels_count_as_a_whole_and_one_by_one() -> None:
    logits = np.array([[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]], dtype=np.float32)
    held = np.array([[1, 0], [0, 1], [0, 0]], dtype=np.float32)
    found = measure("several", logits, held, 2)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)


def test_spearman_counts_the_order_only() -> None:
    grades = np.array([0.0, 1.0, 2.0, 5.0])
    assert spearman(np.exp(grades), grades) == pytest.approx(1.0)
    assert spearman(np.ones(4), grades) == 0.0


def test_the_interval_holds_the_measure() -> None:
    logits = np.eye(4, dtype=np.float32)[CHOSEN]
    whole = measure("one", logits, TARGETS, 4)
    for name, (low, high) in intervals("one", logits, TARGETS, 4).items():
        assert low < whole[name] < high
        assert high - low < 0.2


def test_one_answer_to_everything_is_at_chance_and_takes_all() -> None:
    targets = np.array([0] * 75 + [1] * 25)
    found = warnings(np.zeros(100, dtype=np.int64), targets, ("好评", "差评"))
    assert "the result is at chance: answering 好评 to everything is right in 75.0%" in found[0]
    assert "one class takes all: 好评 is the answer to 100.0%" in found[1]


def test_a_good_result_has_no_warning() -> None:
    targets = np.array([0] * 75 + [1] * 25)
    assert warnings(np.where(np.arange(100) < 5, 1 - targets, targets), targets, ("好评", "差评")) == []
