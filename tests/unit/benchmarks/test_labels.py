"""The drawing of examples and the gains of the benchmark of labels."""

from __future__ import annotations

from itertools import chain

import pytest

from benchmarks.labels import LabelSet, table
from benchmarks.labels import _gain as gain
from benchmarks.labels import _mean_gain as mean_gain

TEACHING = tuple((f"{name}{index}", owner) for owner, name in enumerate("甲乙丙") for index in range(owner + 2))
SET = LabelSet("set", ("甲", "乙", "丙"), None, (), TEACHING)


def examples(per_label: int, shuffled: bool = False) -> list[list[str]]:
    return [label["examples"] for label in SET.draw(per_label, shuffled)]


def test_without_examples_a_label_is_its_name() -> None:
    assert SET.draw(0) == [{"name": name} for name in SET.labels]


def test_each_label_gets_examples_of_its_own_as_many_as_there_are() -> None:
    drawn = examples(3)
    assert [len(each) for each in drawn] == [2, 3, 3]
    assert all(text[0] == name for name, each in zip(SET.labels, drawn, strict=True) for text in each)
    assert drawn == examples(3)


def test_fewer_examples_are_the_first_of_more() -> None:
    assert examples(1) == [each[:1] for each in examples(3)]


def test_shuffled_examples_are_the_same_texts_as_many_to_each_label() -> None:
    right, shuffled = examples(3), examples(3, shuffled=True)
    assert right != shuffled
    assert [len(each) for each in right] == [len(each) for each in shuffled]
    assert sorted(chain.from_iterable(right)) == sorted(chain.from_iterable(shuffled))


def test_a_gain_is_that_of_the_same_texts() -> None:
    before, after = [True, False] * 50, [True, True] * 50
    assert gain(before, before) == {"points": 0.0, "interval_95": [0.0, 0.0], "standard_error": 0.0}
    found = gain(before, after)
    assert found["points"] == 50.0
    assert found["interval_95"] == [pytest.approx(40.2), pytest.approx(59.8)]
    assert mean_gain([{"2": {"gain": found}}, {"2": {"gain": gain(before, before)}}], 2)["points"] == 25.0


def test_the_table_has_a_row_for_each_number_of_examples() -> None:
    found = {"value": 0.5, "texts": 4, "gain": gain([False], [True])}
    rows = table([{"set": "甲/dev", "labels": 2, "without": {"value": 0.25}, "2": found, "8": found}]).splitlines()
    assert rows[2:] == [f"| 甲/dev | 4 | 25.0 | {shots} | 50.0 | +100.0 | +100.0 to +100.0 |" for shots in (2, 8)]
