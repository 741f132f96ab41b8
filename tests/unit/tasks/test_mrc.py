"""Reading comprehension as a choice."""

from __future__ import annotations

import pytest

from service.errors import InvalidRequest
from service.tasks.mrc import MRC, MrcQuery, Reading
from tests.unit.tasks.models import CLS, MASK, SEP, head, letters, log, text_model, yes_no, yes_of

READING = Reading("丙丁", "戊", ("甲", "乙"))


def test_a_row_has_the_choices_the_question_and_the_passage() -> None:
    [row] = MRC.encode(text_model(), MrcQuery((READING,)))
    assert row.ids.tolist() == [CLS, MASK, 7, MASK, 8, SEP, 11, SEP, 9, 10, SEP]


def test_the_answer_is_the_best_choice_and_scores_keep_the_order_of_the_choices() -> None:
    query = MrcQuery((Reading("丙", "戊", ("甲", "乙", "丁")),))
    rows = MRC.encode(text_model(), query)
    [result] = MRC.decode(text_model(), query, rows, [yes_of([0.2, 0.7, 0.1])])
    assert (result.answer, result.index, result.tokens, result.truncated) == ("乙", 1, 12, False)
    assert result.scores == pytest.approx((0.2, 0.7, 0.1))
    assert result.score == result.scores[1]


def test_the_first_of_equal_choices_is_the_answer() -> None:
    query = MrcQuery((READING,))
    rows = MRC.encode(text_model(), query)
    [result] = MRC.decode(text_model(), query, rows, [yes_no((1, 0), (1, 9))])
    assert (result.answer, result.index, result.scores) == ("甲", 0, (0.5, 0.5))


def test_a_single_choice_is_scored_by_itself() -> None:
    query = MrcQuery((Reading("丙", "戊", ("甲",)), READING))
    rows = MRC.encode(text_model(), query)
    first, second = MRC.decode(text_model(), query, rows, [yes_no((log(3)[0], 0)), yes_of([0.2, 0.8])])
    assert (first.answer, first.index) == ("甲", 0)
    assert first.scores == pytest.approx((0.75,))
    assert first.score == first.scores[0]
    assert second.scores == pytest.approx((0.2, 0.8))


def test_inputs_may_have_different_choices() -> None:
    query = MrcQuery((READING, Reading("丙", "戊", ("己", "庚", "辛"))))
    rows = MRC.encode(text_model(), query)
    results = MRC.decode(text_model(), query, rows, [yes_of([0.1, 0.9]), yes_of([0.1, 0.1, 0.8])])
    assert [(result.answer, len(result.scores)) for result in results] == [("乙", 2), ("辛", 3)]


def test_a_long_passage_is_truncated_and_reported() -> None:
    query = MrcQuery((Reading(letters(600), "戊", ("甲", "乙")),))
    rows = MRC.encode(text_model(), query)
    [result] = MRC.decode(text_model(), query, rows, [yes_of([0.1, 0.9])])
    assert (result.tokens, result.truncated) == (512, True)


def test_the_error_of_choices_that_do_not_fit_names_their_input() -> None:
    readings = (READING, Reading("丙", "戊", tuple(chr(0x5000 + index) for index in range(300))))
    with pytest.raises(
        InvalidRequest, match=r"^inputs\[1\]\.choices: 300 options take at least 601 tokens; at most 480 fit; "
    ):
        MRC.encode(text_model(), MrcQuery(readings))


def test_only_masked_lms_with_yes_and_no_can_do_mrc() -> None:
    models = [text_model(), head("a", "b"), text_model("encoder"), text_model(yes=None)]
    assert [MRC.can(model, MrcQuery((READING,))) for model in models] == [True, False, False, False]
