"""Scores: softmax, sigmoid and ranking."""

from __future__ import annotations

import numpy as np
import pytest

from service.tasks.scores import LabelScore, rank, sigmoid, softmax


def test_softmax_values() -> None:
    scores = softmax(np.log(np.asarray([1, 2, 5], dtype=np.float32)))
    assert scores == pytest.approx([0.125, 0.25, 0.625], abs=1e-7)
    assert scores.dtype == np.float32


def test_softmax_depends_only_on_differences() -> None:
    logits = np.asarray([1.5, -2.0, 0.25], dtype=np.float32)
    assert softmax(logits + np.float32(1024)) == pytest.approx(softmax(logits), abs=1e-7)


def test_sigmoid_values() -> None:
    scores = sigmoid(np.asarray([0.0, np.log(3), -np.log(3), 1e6, -1e6]))
    assert scores == pytest.approx([0.5, 0.75, 0.25, 1.0, 0.0], abs=1e-7)
    assert scores.dtype == np.float32


def test_rank_is_descending_and_stable() -> None:
    scores = np.asarray([0.25, 0.5, 0.25, 0.5], dtype=np.float32)
    wanted = (LabelScore("b", 0.5), LabelScore("d", 0.5), LabelScore("a", 0.25), LabelScore("c", 0.25))
    assert rank("abcd", scores) == wanted


def test_rank_raises_when_labels_and_scores_differ_in_number() -> None:
    with pytest.raises(ValueError, match="zip"):
        rank(("a", "b"), np.zeros(3, dtype=np.float32))
