"""Parts of labelled data: stratified, repeatable, and without a text on both sides."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import DatasetError
from service.tools.data.converters import Example
from service.tools.data.splits import cross_fold, k_shot, limit, overlap, split, without_overlap


def examples_of(*answers: int, repeat: int = 1) -> list[Example]:
    labels = tuple("abc")
    return [Example("classify", (f"文{index // repeat}",), labels, answer) for index, answer in enumerate(answers)]


IMBALANCED = examples_of(*([0] * 75 + [1] * 23 + [2] * 2))


def test_a_split_keeps_the_share_of_each_class() -> None:
    train, dev = split(IMBALANCED, 0.2, seed=0)
    assert Counter(example.answer for example in dev) == {0: 15, 1: 5, 2: 1}
    assert len(train) + len(dev) == 100


def test_a_split_is_repeatable_and_in_file_order() -> None:
    assert split(IMBALANCED, 0.2, seed=0) == split(IMBALANCED, 0.2, seed=0) != split(IMBALANCED, 0.2, seed=1)
    for part in split(IMBALANCED, 0.2, seed=0):
        assert part == sorted(part, key=IMBALANCED.index)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 2), min_size=6, max_size=40), st.integers(1, 3), st.floats(0.05, 0.6))
def test_no_text_is_in_train_and_dev(answers: list[int], repeat: int, share: float) -> None:
    examples = examples_of(*answers, repeat=repeat)
    try:
        train, dev = split(examples, share, seed=3)
    except DatasetError:
        return
    assert overlap(train, dev) == 0
    assert len(train) + len(dev) == len(examples)


def test_a_class_of_one_example_is_trained_on() -> None:
    train, dev = split(examples_of(0, 0, 0, 0, 1), 0.25, seed=0)
    assert [example.answer for example in train].count(1) == 1
    assert len(dev) == 1


@pytest.mark.parametrize("examples", [[], examples_of(0), examples_of(0, 0, 0, repeat=3), examples_of(0, 1)])
def test_too_few_examples_cannot_be_split(examples: list[Example]) -> None:
    with pytest.raises(DatasetError, match="too few to split into train and dev"):
        split(examples, 0.5, seed=0)


def test_combinations_of_labels_that_occur_once_are_split_too() -> None:
    examples = [
        Example("classify", (f"文{index}",), tuple("abcdefgh"), index % 8, answers=tuple(range(index % 8 + 1)))
        for index in range(8)
    ]
    train, dev = split(examples, 0.25, seed=0)
    assert (len(train), len(dev)) == (6, 2)


def test_folds_share_out_all_examples() -> None:
    parts = [cross_fold(IMBALANCED, index, 5, seed=0) for index in range(5)]
    assert sorted(example.texts for _, dev in parts for example in dev) == sorted(one.texts for one in IMBALANCED)
    assert [len(dev) for _, dev in parts] == [20] * 5
    assert all(Counter(example.answer for example in dev)[0] == 15 for _, dev in parts)


def test_k_shot_takes_k_of_each_class_or_all() -> None:
    taken = k_shot(IMBALANCED, 8, seed=0)
    assert Counter(example.answer for example in taken) == {0: 8, 1: 8, 2: 2}
    assert taken == sorted(taken, key=IMBALANCED.index)
    assert taken != k_shot(IMBALANCED, 8, seed=1)


def test_k_shot_of_several_labels_takes_k_that_hold_each() -> None:
    examples = [
        Example("classify", (f"文{index}",), tuple("abc"), 0, answers=(0, 1 + index % 2)) for index in range(20)
    ]
    counts = Counter(answer for example in k_shot(examples, 3, seed=0) for answer in example.answers or ())
    assert counts[1] >= 3
    assert counts[2] >= 3


def test_k_shot_needs_one_list_of_classes() -> None:
    for example in (
        Example("similarity", ("甲", "乙"), (), -1, grade=2.0),
        Example("mrc", ("甲",), ("x", "y"), 0, "什么？"),
    ):
        with pytest.raises(DatasetError, match="need data with one list of classes"):
            k_shot([IMBALANCED[0], example], 2, seed=0)


def test_a_limit_is_a_random_sample_in_file_order() -> None:
    drawn = limit(IMBALANCED, 50, seed=1)
    assert drawn == limit(IMBALANCED, 50, seed=1) != limit(IMBALANCED, 50, seed=2)
    assert drawn == sorted(drawn, key=IMBALANCED.index) != IMBALANCED[:50]
    assert limit(IMBALANCED, None, 1) == limit(IMBALANCED, 1000, 1) == IMBALANCED


def test_training_examples_whose_texts_are_in_dev_are_dropped() -> None:
    train = [Example("classify", (" 甲 ",), ("a", "b"), 0), Example("classify", ("乙",), ("a", "b"), 0)]
    dev = [Example("classify", ("甲",), ("a", "b"), 1)]
    assert without_overlap(train, dev) == (train[1:], 1)
    assert overlap(train, dev) == 1


def test_another_question_about_a_passage_is_no_overlap() -> None:
    first = Example("mrc", ("文章",), ("是", "否"), 0, "甲？")
    second = Example("mrc", ("文章",), ("是", "否"), 0, "乙？")
    assert overlap([first], [second]) == 0
