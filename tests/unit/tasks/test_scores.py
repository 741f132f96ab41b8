"""Scores: softmax, sigmoid and ranking."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from service.tasks.scores import LabelScore, activate, rank, sigmoid, softmax


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
    with pytest.raises(ValueError, match="2 labels, but 3 scores"):
        rank(("a", "b"), np.zeros(3, dtype=np.float32))


@pytest.mark.parametrize("count", [2, 32, 33, 5000])
def test_softmax_equals_that_of_torch(count: int) -> None:
    logits = np.random.default_rng(0).normal(0, 8, count).astype(np.float32)
    wanted = torch.from_numpy(logits).double().softmax(0)
    assert softmax(logits) == pytest.approx(wanted.numpy(), abs=1e-7)


@pytest.mark.parametrize("count", [4, 33, 5000])
@pytest.mark.parametrize("top_k", [None, 1, 3, 10_000])
def test_rank_is_the_same_for_many_labels(count: int, top_k: int | None) -> None:
    scores = np.random.default_rng(0).integers(0, 7, count).astype(np.float32)
    labels = tuple(map(str, range(count)))
    wanted = sorted(zip(labels, scores.tolist(), strict=True), key=lambda pair: -pair[1])[:top_k]
    assert [(one.label, one.score) for one in rank(labels, scores, top_k)] == wanted


def test_activate_returns_what_the_head_says() -> None:
    outputs = np.asarray([0.0, np.log(3)], dtype=np.float32)
    assert activate(outputs, "softmax") == pytest.approx([0.25, 0.75])
    assert activate(outputs, "sigmoid") == pytest.approx([0.5, 0.75])
    assert activate(outputs, "identity").tolist() == outputs.tolist()
