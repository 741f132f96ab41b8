"""The rows of the few-shot table, and what is passed on to `finetune`."""

from __future__ import annotations

import pytest

from benchmarks.fewclue import _divide as divide
from benchmarks.fewclue import compare

ZERO = {"0": (50.0, 100), "1": (60.0, 90)}
FEW = {"0": (70.0, 100), "1": (58.0, 90)}


def test_a_row_has_the_difference_of_the_means_and_the_folds_that_gain() -> None:
    row = compare(ZERO, FEW)
    assert (row["zero_shot_mean"], row["few_shot_mean"], row["difference"], row["folds_better"]) == (55, 64, 9, 1)


def test_a_row_has_the_examples_and_both_sides_of_each_fold() -> None:
    assert compare(ZERO, FEW)["folds"][1] == {"fold": "1", "examples": 90, "zero_shot": 60.0, "few_shot": 58.0}


def test_a_side_that_the_model_cannot_do_leaves_its_reason_and_no_difference() -> None:
    row = compare("no served model can do this", FEW)
    assert row["zero_shot"] == "not done: no served model can do this"
    assert row["few_shot_mean"] == 64
    assert "difference" not in row


def test_sides_of_different_examples_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different examples"):
        compare(ZERO, {"0": (70.0, 100), "1": (58.0, 91)})


def test_words_after_two_hyphens_are_those_of_finetune() -> None:
    assert divide(["tnews", "--model", "mini", "--", "--max-steps", "10"]) == (
        ["tnews", "--model", "mini"],
        ["--max-steps", "10"],
    )
