"""Softmax and order."""

from __future__ import annotations

import numpy as np
import pytest

from service.tasks.scores import LabelScore, rank, sigmoid, softmax


def test_softmax_by_hand() -> None:
    scores = softmax(np.log(np.asarray([1, 2, 5], dtype=np.float32)))
    assert scores == pytest.approx([0.125, 0.25, 0.625], abs=1e-7)
    assert scores.dtype == np.float32


def test_softmax_knows_only_differences() -> None:
    logits = np.asarray([1.5, -2.0, 0.25], dtype=np.float32)
    assert softmax(logits + np.float32(1024)) == pytest.approx(softmax(logits), abs=1e-7)


def test_sigmoid_by_hand() -> None:
    scores = sigmoid(np.asarray([0.0, np.log(3), -np.log(3), 1e6, -1e6]))
    assert scores == pytest.approx([0.5, 0.75, 0.25, 1.0, 0.0], abs=1e-7)
    assert scores.dtype == np.float32


def test_the_best_comes_first_and_equals_keep_their_order() -> None:
    scores = np.asarray([0.25, 0.5, 0.25, 0.5], dtype=np.float32)
    wanted = (LabelScore("b", 0.5), LabelScore("d", 0.5), LabelScore("a", 0.25), LabelScore("c", 0.25))
    assert rank("abcd", scores) == wanted


def test_every_label_has_a_score() -> None:
    with pytest.raises(ValueError, match="zip"):
        rank(("a", "b"), np.zeros(3, dtype=np.float32))
