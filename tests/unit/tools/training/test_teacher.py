"""The naive Bayes teacher: its n-grams, its scores, and the texts that it labels."""

from __future__ import annotations

import math

import pytest

from service.tools.data.converters import Example
from service.tools.training.stream import Teacher, ngrams

LABELS = ("水果", "交通")
EXAMPLES = [
    Example("classify", (text,), LABELS, answer, "哪一类？")
    for text, answer in (("苹果香蕉", 0), ("香蕉好吃", 0), ("火车飞机", 1), ("飞机很快", 1))
]


def test_ngrams_are_characters_and_pairs_in_lower_case() -> None:
    assert list(ngrams("A股涨")) == ["a", "股", "涨", "a股", "股涨"]


def test_scores_are_those_of_naive_bayes() -> None:
    teacher = Teacher([EXAMPLES[0], EXAMPLES[2]])
    grams = len(set(ngrams("苹果香蕉"))) + len(set(ngrams("火车飞机")))
    seen, unseen = 1.5 / (0.5 * grams + 7), 0.5 / (0.5 * grams + 7)
    fruit, traffic = teacher.scores("果")
    assert fruit == pytest.approx(math.log(0.5) + math.log(seen), abs=1e-5)
    assert traffic == pytest.approx(math.log(0.5) + math.log(unseen), abs=1e-5)


def test_label_omits_texts_with_low_confidence() -> None:
    labelled = Teacher(EXAMPLES).label(["香蕉苹果", "没有见过", "坐飞机去"], keep=0.7)
    assert [(example.texts, example.answer) for example in labelled] == [(("香蕉苹果",), 0), (("坐飞机去",), 1)]
    assert {(example.options, example.question) for example in labelled} == {(LABELS, "哪一类？")}


def test_label_keeps_every_text_with_keep_1() -> None:
    assert len(Teacher(EXAMPLES).label(["香蕉", "没有", "飞机"], keep=1.0)) == 3
