"""Reading comprehension without choices: windows, spans, and no answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain import Encoding, Output, Spans
from service.errors import InvalidRequest
from service.tasks import extraction
from service.tasks.extraction import SpanOptions, SpanResult
from service.tasks.mrc import MRC, MrcQuery, Reading
from service.tasks.task import Truncation
from service.tasks.text_model import TextModel
from tests.unit.tasks.models import CLS, SEP, head, ids, letters, text_model

NONE = -1
"""The place of the first token, as an end of a span."""


def reader(max_length: int = 512) -> TextModel:
    return text_model("question-answering", name="reader", max_length=max_length)


def query(*readings: tuple[str, str], options: SpanOptions | None = None, truncation: Truncation = "right") -> MrcQuery:
    return MrcQuery(tuple(Reading(*each) for each in readings), truncation, options or SpanOptions())


def logits(row: Encoding, start: Mapping[int, float], end: Mapping[int, float]) -> Output:
    """Logits of tokens by their place in the window, or NONE; those of the question are high, and do not count."""
    scores = np.full((2, row.num_tokens), 9.0, dtype=np.float32)
    assert isinstance(row, extraction.Window)
    first = row.num_tokens - 1 - len(row.starts)
    scores[:, 0] = scores[:, first:-1] = -9.0
    for line, given_logits in zip(scores, (start, end), strict=True):
        for place, logit in given_logits.items():
            line[0 if place == NONE else first + place] = logit
    return Output(scores)


def answer(
    passage: str, *outputs: tuple[Mapping[int, float], Mapping[int, float]], options: SpanOptions | None = None
) -> SpanResult:
    """Of a passage whose windows have these logits, with rows of 14 tokens and a question of one."""
    asked = query((passage, "戊"), options=options)
    rows = MRC.encode(reader(14), asked)
    found = [logits(row, *output) for row, output in zip(rows, outputs, strict=True)]
    [result] = MRC.decode(reader(14), asked, rows, found)
    assert isinstance(result, SpanResult)
    return result


def test_a_row_has_the_question_and_the_passage() -> None:
    [row] = MRC.encode(reader(), query(("丙丁", "戊")))
    assert row.ids.tolist() == [CLS, *ids("戊"), SEP, *ids("丙丁"), SEP]
    assert row.segment_ids.tolist() == [0, 0, 0, 1, 1, 1]
    assert row.readout == Spans()
    assert (row.truncated, row.continues) == (False, False)


def test_a_long_passage_is_read_in_windows_that_share_tokens() -> None:
    rows = MRC.encode(reader(14), query((letters(25), "戊"), ("甲", "戊"), options=SpanOptions(stride=3)))
    # A window has room for 14 - 3 special tokens - 1 of the question.
    assert [row.ids[3:-1].tolist() for row in rows[:3]] == [
        ids(letters(10)),
        ids(letters(25)[7:17]),
        ids(letters(25)[14:24]),
    ]
    assert [row.continues for row in rows] == [False, True, True, True, False]
    assert not any(row.truncated for row in rows)


def test_windows_share_at_most_half_of_their_tokens() -> None:
    rows = MRC.encode(reader(14), query((letters(20), "戊"), options=SpanOptions(stride=1000)))
    assert [row.ids[3] for row in rows] == ids(letters(20)[0] + letters(20)[5] + letters(20)[10])


def test_the_question_gets_half_of_a_row_and_is_truncated() -> None:
    first, *rest = MRC.encode(reader(14), query((letters(10), letters(9))))
    assert first.ids[1:7].tolist() == [*ids(letters(5)), SEP]
    assert (first.truncated, [row.truncated for row in rest]) == (True, [False, False])
    [left, *_] = MRC.encode(reader(14), query((letters(10), letters(9)), truncation="left"))
    assert left.ids[1:6].tolist() == ids(letters(9)[4:])


@pytest.mark.parametrize(
    ("passage", "question", "error"),
    [
        (letters(30), "戊", r"inputs\[0\]\.passage: takes at least 22 tokens; at most 10 fit next to its question"),
        ("甲", letters(9), r"inputs\[0\]\.question: takes at least 9 tokens; at most 5 fit"),
    ],
)
def test_what_does_not_fit_into_one_row_is_refused_on_request(passage: str, question: str, error: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{error}$"):
        MRC.encode(reader(14), query((passage, question), truncation="error"))
    assert len(MRC.encode(reader(14), query((letters(10), "戊"), truncation="error"))) == 1


def test_the_windows_of_a_request_are_limited() -> None:
    options = SpanOptions(stride=0, max_windows=5)
    fitting = query(("甲", "戊"), (letters(30), "戊"), ("乙", "戊"), options=options)
    assert len(MRC.encode(reader(14), fitting)) == 5
    with pytest.raises(
        InvalidRequest,
        match=r"^inputs\[1\]\.passage: takes more than the 3 windows of 10 tokens that are left of the 5 ",
    ):
        MRC.encode(reader(14), query(("甲", "戊"), (letters(31), "戊"), ("乙", "戊"), options=options))
    assert len(MRC.encode(reader(14), query(*[("甲", "戊")] * 7, options=options))) == 7


def test_a_model_with_too_short_rows_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"^model: the rows of reader have no room for a passage"):
        MRC.encode(reader(3), query(("甲", "戊")))


def test_the_answer_is_the_span_with_the_highest_product_of_probabilities() -> None:
    result = answer("甲乙丙丁戊", ({NONE: 0, 1: 2, 3: 1}, {NONE: 0, 0: 8, 2: 2}))
    # The best end stands before the best start.
    start, end = np.exp([0, 2, 1]), np.exp([0, 8, 2])
    assert (result.answer, result.start, result.end) == ("乙丙", 1, 3)
    assert result.score == pytest.approx(start[1] / start.sum() * end[2] / end.sum(), rel=1e-3)
    assert result.no_answer_score == pytest.approx(1 / start.sum() / end.sum(), rel=1e-3)
    assert (result.windows, result.tokens, result.truncated) == (1, 9, False)


def test_candidates_are_the_best_spans_of_limited_length() -> None:
    spans = ({NONE: -9, 0: 3, 2: 2}, {2: 3, 4: 2})
    result = answer("甲乙丙丁戊", spans, options=SpanOptions(top_k=3, max_answer_tokens=3))
    assert [each.answer for each in result.candidates] == ["甲乙丙", "丙", "丙丁戊"]
    assert result.candidates[0].score == result.score > result.candidates[1].score > result.candidates[2].score
    assert answer("甲乙丙丁戊", spans, options=SpanOptions(max_answer_tokens=2)).answer == "丙"


def test_there_is_no_answer_where_the_first_token_is_better() -> None:
    spans = ({NONE: 2, 1: 1}, {NONE: 2, 2: 1.5})
    none = answer("甲乙丙丁戊", spans)
    assert (none.answer, none.start, none.end) == (None, None, None)
    assert none.score == none.no_answer_score > 0.4
    assert [each.answer for each in none.candidates] == ["乙丙"]
    assert answer("甲乙丙丁戊", spans, options=SpanOptions(null_threshold=1.4)).answer is None
    tolerant = answer("甲乙丙丁戊", spans, options=SpanOptions(null_threshold=1.6))
    assert (tolerant.answer, tolerant.no_answer_score) == ("乙丙", none.no_answer_score)
    assert tolerant.score == none.candidates[0].score < none.score


def test_a_span_below_the_lowest_score_is_no_answer() -> None:
    spans = ({NONE: 0, 1: 1}, {NONE: 0, 2: 1})
    [best] = answer("甲乙丙丁戊", spans).candidates
    assert answer("甲乙丙丁戊", spans, options=SpanOptions(min_score=best.score - 0.01)).answer == "乙丙"
    refused = answer("甲乙丙丁戊", spans, options=SpanOptions(min_score=best.score + 0.01))
    assert (refused.answer, refused.candidates, refused.score) == (None, (), refused.no_answer_score)


def test_the_best_window_answers_with_the_place_in_the_whole_passage() -> None:
    nothing = ({NONE: 5, 0: 0}, {NONE: 5, 0: 0})
    found = ({NONE: 0, 6: 5}, {NONE: 0, 8: 5})
    options = SpanOptions(stride=0)
    passage = letters(20)
    result = answer(passage, nothing, found, options=options)
    assert (result.answer, result.start, result.end, result.windows) == (passage[16:19], 16, 19, 2)
    assert result.tokens == 2 * 14
    assert result.no_answer_score < 0.01, "that of the window with the answer"
    assert answer(passage, nothing, nothing, options=options).answer is None


def test_a_span_of_two_windows_counts_once() -> None:
    options = SpanOptions(stride=5, top_k=2)
    result = answer(letters(15), ({NONE: 0, 6: 5}, {7: 5}), ({NONE: 0, 1: 3}, {2: 3}), options=options)
    assert (result.start, result.end) == (6, 8)
    assert len({(each.start, each.end) for each in result.candidates}) == 2
    assert result.score > 0.9


def test_answers_are_counted_in_characters_of_the_passage_as_it_was_sent() -> None:
    passage = "😀甲\u0301　ＭＡＳＫ\n乙"
    [row] = MRC.encode(reader(), asked := query((passage, "戊"), options=SpanOptions(top_k=9)))
    assert isinstance(row, extraction.Window)
    for place, (start, end) in enumerate(zip(row.starts, row.ends, strict=True)):
        [result] = MRC.decode(reader(), asked, [row], [logits(row, {place: 5}, {place: 5})])
        assert isinstance(result, SpanResult)
        assert (result.start, result.end, result.answer) == (start, end, passage[start:end])
    assert [passage[start:end] for start, end in zip(row.starts, row.ends, strict=True)] == [
        "😀",
        "甲",
        "ＭＡＳＫ",
        "乙",
    ]


def test_special_tokens_of_a_passage_are_text() -> None:
    [row] = MRC.encode(reader(), query(("甲[SEP]乙", "[CLS]")))
    assert row.ids.tolist().count(SEP) == 2
    assert row.ids.tolist().count(CLS) == 1


def test_a_passage_without_tokens_has_no_answer() -> None:
    [result] = MRC.decode(
        reader(), asked := query(("\u200b\x01", "戊")), rows := MRC.encode(reader(), asked), [logits(rows[0], {}, {})]
    )
    assert isinstance(result, SpanResult)
    assert (result.answer, result.score, result.candidates) == (None, 1.0, ())


def test_an_answer_has_a_limited_number_of_characters() -> None:
    passage = f"甲{'x' * 900}乙"  # an unknown word is one token
    asked = query((passage, "戊"), options=SpanOptions(top_k=100))
    rows = MRC.encode(reader(), asked)
    [result] = MRC.decode(reader(), asked, rows, [logits(rows[0], {0: 5}, {2: 5})])
    assert isinstance(result, SpanResult)
    assert [each.answer for each in result.candidates] == ["甲", "乙"]
    assert extraction.reply_bytes([passage], SpanOptions()) == 2 * (3 * 800 + extraction.SPAN_BYTES)


def test_only_question_answering_models_answer_without_choices() -> None:
    models = [reader(), text_model(), head("a", "b"), text_model("encoder")]
    assert [MRC.can(model, query(("甲", "戊"))) for model in models] == [True, False, False, False]
    assert not MRC.can(reader(), MrcQuery((Reading("甲", "戊", ("甲",)),)))


PIECES = st.sampled_from(
    ["甲", "乙", "😀", "e\u0301", "　", " ", "\n", "ﬁ", "ＡＢ", "\u0301", "\x00", "[SEP]", "word", "未"]
)


@settings(max_examples=150, deadline=None)
@given(
    passage=st.lists(PIECES, min_size=1, max_size=60).map("".join),
    seed=st.integers(0, 2**32 - 1),
    options=st.builds(
        SpanOptions, top_k=st.integers(1, 20), max_answer_tokens=st.integers(1, 30), stride=st.integers(0, 9)
    ),
)
def test_an_answer_is_always_what_stands_at_its_place(passage: str, seed: int, options: SpanOptions) -> None:
    asked = query((passage, "戊"), (passage, "己"), options=options)
    model, random = reader(20), np.random.default_rng(seed)
    rows = MRC.encode(model, asked)
    outputs = [Output(random.normal(size=(2, row.num_tokens)).astype(np.float32) * 3) for row in rows]
    results: Sequence[object] = MRC.decode(model, asked, rows, outputs)
    assert len(results) == 2
    for result in results:
        assert isinstance(result, SpanResult)
        assert len(result.candidates) <= options.top_k
        assert len({(each.start, each.end) for each in result.candidates}) == len(result.candidates)
        for each in result.candidates:
            assert each.answer == passage[each.start : each.end] == each.answer.strip() != ""
            assert 0 <= each.score <= 1
        scores = [each.score for each in result.candidates]
        assert scores == sorted(scores, reverse=True)
        if result.answer is None:
            assert (result.start, result.end, result.score) == (None, None, result.no_answer_score)
        else:
            assert (result.answer, result.start, result.end) == (
                result.candidates[0].answer,
                result.candidates[0].start,
                result.candidates[0].end,
            )


def test_windows_with_other_fields_stay_windows() -> None:
    [row] = MRC.encode(reader(), query(("甲", "戊")))
    assert isinstance(replace(row, truncated=True), extraction.Window)
