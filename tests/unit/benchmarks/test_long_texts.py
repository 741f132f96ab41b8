"""The comparison of the ways to read a long text."""

from __future__ import annotations

import pytest

from benchmarks.long_texts import WAYS, compare, table


def test_answers_are_compared_example_by_example() -> None:
    first = [True, True, False, False, False]
    found = compare([True, False, True, True, False], first)
    assert (found["value"], found["examples"], found["better"], found["worse"]) == (0.6, 5, 2, 1)
    assert found["p"] == pytest.approx(1.0)
    low, high = found["interval_95"]
    assert low < 0.6 < high


def test_few_changes_in_one_direction_are_no_difference() -> None:
    assert compare([True] * 8, [False] * 5 + [True] * 3)["p"] == pytest.approx(2 / 2**5)
    assert compare([True], [True])["p"] == 1.0


def test_the_table_compares_all_ways_with_the_first_one() -> None:
    row = {"set": "s/dev", "models": "mini", "tokens": 512, "truncated": 0.95}
    rows = [row | {"truncation": way, **compare([True, False], [False, True])} for way in WAYS]
    _, _, first, second, *_ = table(rows).splitlines()
    assert first == "| s/dev | mini | `right` | 50.0 | 9.4 to 90.5 |  |  |  | 512 | 95% |"
    assert second == "| s/dev | mini | `left` | 50.0 | 9.4 to 90.5 | 1 | 1 | 1.00 | 512 | 95% |"
