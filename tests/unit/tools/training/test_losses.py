"""Losses, each against its formula; and that a step may be divided."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from service.tools.training.losses import Loss, class_weights, imbalance, positive_weights

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.0, 1.0, 0.0], [0.3, 0.2, 0.1], [1.0, 1.0, 5.0]])
TARGETS = torch.tensor([0, 2, 1, 2])


def test_the_plain_loss_is_cross_entropy() -> None:
    torch.testing.assert_close(Loss()(LOGITS, TARGETS), functional.cross_entropy(LOGITS, TARGETS))


def test_smoothing_is_that_of_pytorch_where_all_classes_are_present() -> None:
    wanted = functional.cross_entropy(LOGITS, TARGETS, label_smoothing=0.1)
    torch.testing.assert_close(Loss(smoothing=0.1)(LOGITS, TARGETS), wanted)


def test_smoothing_leaves_out_options_that_a_row_does_not_have() -> None:
    logits = torch.tensor([[1.0, 2.0, -1e4]])
    found = Loss(smoothing=0.1)(logits, torch.tensor([0]), torch.tensor([[True, True, False]]))
    wanted = functional.cross_entropy(logits[:, :2], torch.tensor([0]), label_smoothing=0.1)
    torch.testing.assert_close(found, wanted)


def test_the_focal_loss_weakens_what_is_sure() -> None:
    right = LOGITS.softmax(-1)[torch.arange(4), TARGETS]
    wanted = (-((1 - right) ** 2) * right.log()).mean()
    torch.testing.assert_close(Loss(gamma=2.0)(LOGITS, TARGETS), wanted)


@pytest.mark.parametrize("loss", [Loss(), Loss(smoothing=0.1), Loss(weights=torch.tensor([1.0, 0.5, 2.0]))])
def test_the_loss_of_a_step_is_the_mean_of_the_losses_of_its_parts(loss: Loss) -> None:
    parts = [loss(LOGITS[rows], TARGETS[rows]) for rows in (slice(2), slice(2, 4))]
    torch.testing.assert_close(loss(LOGITS, TARGETS), sum(parts) / 2)


def test_class_weights_give_every_class_the_same_total() -> None:
    counts = [75, 25]
    weights = class_weights(counts)
    assert weights[0] * 75 == pytest.approx(weights[1] * 25)
    assert float((weights * torch.tensor(counts)).sum()) == pytest.approx(100)


def test_a_class_without_examples_has_no_weight() -> None:
    assert class_weights([3, 0, 3]).tolist() == [1.0, 0.0, 1.0]


def test_positive_weights_are_the_ratio_of_rows_without_a_class() -> None:
    held = np.array([[1, 0], [1, 0], [1, 1], [0, 0]], dtype=np.float32)
    assert positive_weights(held).tolist() == [1.0, 3.0]


def test_the_error_of_grades_does_not_depend_on_their_unit() -> None:
    scores, grades = torch.tensor([[1.0], [2.0]]), torch.tensor([2.0, 4.0])
    once = Loss("number", variance=1.0)(scores, grades)
    hundredfold = Loss("number", variance=100.0**2)(100 * scores, 100 * grades)
    torch.testing.assert_close(once, hundredfold)


def test_imbalance_counts_classes_that_occur() -> None:
    assert imbalance([30, 10, 0]) == 3.0
