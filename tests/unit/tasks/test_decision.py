"""Decisions on ranked labels: the least score, the lead of the first label, and their defaults."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.tasks.decision import DEFAULT_RULE, Decided, Rule, decide
from service.tasks.scores import LabelScore

RANKED = (LabelScore("甲", 0.5), LabelScore("乙", 0.375), LabelScore("丙", 0.125))


def decision(rule: Rule, *scores: LabelScore, are_independent: bool = False) -> Decided:
    return decide(scores or RANKED, rule, are_independent=are_independent)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (DEFAULT_RULE, Decided("label", "甲", ("甲",))),
        (Rule(min_score=0.5), Decided("label", "甲", ("甲",))),
        (Rule(min_score=0.51), Decided("none", "甲", ())),
        (Rule(min_score=0.51, none_label="其他"), Decided("none", "其他", ("其他",))),
        (Rule(min_score=0.5, none_label="其他"), Decided("label", "甲", ("甲",))),
        (Rule(margin=0.125), Decided("label", "甲", ("甲",))),
        (Rule(margin=0.13), Decided("ambiguous", "甲", ("甲", "乙"))),
        (Rule(margin=0.4), Decided("ambiguous", "甲", ("甲", "乙", "丙"))),
        (Rule(min_score=0.6, margin=0.4), Decided("none", "甲", ())),
    ],
)
def test_one_of_several_labels_is_decided_for(rule: Rule, expected: Decided) -> None:
    assert decision(rule) == expected


def test_the_default_decides_for_the_first_label_of_any_score() -> None:
    assert decision(DEFAULT_RULE, LabelScore("甲", 0.0011), LabelScore("乙", 0.001)).decision == "label"


def test_equal_scores_are_ambiguous_by_default() -> None:
    found = decision(DEFAULT_RULE, LabelScore("甲", 0.4), LabelScore("乙", 0.4), LabelScore("丙", 0.2))
    assert found == Decided("ambiguous", "甲", ("甲", "乙"))


def test_a_label_without_a_second_one_has_any_lead() -> None:
    assert decision(Rule(margin=1.0), LabelScore("甲", 0.1)) == Decided("label", "甲", ("甲",))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (DEFAULT_RULE, Decided("label", "甲", ("甲",))),
        (Rule(min_score=0.3), Decided("label", "甲", ("甲", "乙"))),
        (Rule(min_score=0.0), Decided("label", "甲", ("甲", "乙", "丙"))),
        (Rule(min_score=0.6), Decided("none", "甲", ())),
        (Rule(min_score=0.6, none_label="其他"), Decided("none", "其他", ("其他",))),
    ],
)
def test_all_independent_labels_with_the_least_score_are_decided_for(rule: Rule, expected: Decided) -> None:
    assert decision(rule, are_independent=True) == expected


def test_no_independent_label_below_one_half_is_decided_for_by_default() -> None:
    found = decision(DEFAULT_RULE, LabelScore("甲", 0.49), are_independent=True)
    assert found == Decided("none", "甲", ())


@given(
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8),
    st.none() | st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.booleans(),
)
def test_a_decision_agrees_with_its_labels(
    scores: list[float], min_score: float | None, margin: float, are_independent: bool
) -> None:
    ranked = [LabelScore(str(index), score) for index, score in enumerate(sorted(scores, reverse=True))]
    found = decide(ranked, Rule(min_score, margin), are_independent=are_independent)
    assert found.label == ranked[0].label
    assert found.chosen == tuple(one.label for one in ranked[: len(found.chosen)])
    counts = {"none": (0, 0), "label": (1, len(ranked) if are_independent else 1), "ambiguous": (2, len(ranked))}
    assert found.decision is not None
    low, high = counts[found.decision]
    assert low <= len(found.chosen) <= high
