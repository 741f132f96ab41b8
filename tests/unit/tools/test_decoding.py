"""Examples that are decided together: the idioms of a line, the keywords of an abstract."""

from __future__ import annotations

from service.tools.data.converters import Example
from service.tools.decoding import assign_idioms, rank_keywords
from service.tools.evaluation import Answer

IDIOMS = ("甲", "乙", "丙")
FITS = ("不能概括：词", "可以概括：词")


def answer(options: tuple[str, ...], scores: tuple[float, ...], group: str | None = "一") -> Answer:
    example = Example("classify", ("文",), options, -1, group=group)
    best = options[max(range(len(scores)), key=scores.__getitem__)]
    return Answer(example, best, scores=tuple(zip(options, scores, strict=True)))


def test_an_idiom_of_a_line_is_chosen_once_by_the_most_certain_blank() -> None:
    answers = [answer(IDIOMS, (0.6, 0.3, 0.1)), answer(IDIOMS, (0.9, 0.05, 0.05)), answer(IDIOMS, (0.5, 0.4, 0.1))]
    assert [one.chosen for one in assign_idioms(answers)] == ["丙", "甲", "乙"]


def test_lines_are_decided_by_themselves() -> None:
    answers = [answer(IDIOMS, (0.6, 0.3, 0.1), "一"), answer(IDIOMS, (0.6, 0.3, 0.1), "二")]
    assert [one.chosen for one in assign_idioms(answers)] == ["甲", "甲"]


def test_examples_without_a_group_keep_their_answers() -> None:
    answers = [answer(IDIOMS, (0.6, 0.3, 0.1), None), answer(IDIOMS, (0.6, 0.3, 0.1), None)]
    assert assign_idioms(answers) == answers


def test_a_refused_input_stays_refused() -> None:
    refused = Answer(Example("classify", ("文",), IDIOMS, -1, group="一"), None, reason="too long")
    assert assign_idioms([refused, answer(IDIOMS, (0.6, 0.3, 0.1))])[0] is refused


def test_the_better_half_of_the_keywords_of_an_abstract_fits() -> None:
    answers = [answer(FITS, (0.9, 0.1)), answer(FITS, (0.8, 0.2)), answer(FITS, (0.7, 0.3)), answer(FITS, (0.6, 0.4))]
    assert [one.chosen for one in rank_keywords(answers)] == [FITS[0], FITS[0], FITS[1], FITS[1]]


def test_the_order_of_the_options_does_not_change_which_keywords_fit() -> None:
    turned = FITS[::-1]
    answers = [answer(turned, (0.1, 0.9)), answer(turned, (0.2, 0.8))]
    assert [one.chosen for one in rank_keywords(answers)] == [turned[1], turned[0]]
