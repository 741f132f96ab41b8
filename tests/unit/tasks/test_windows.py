"""Windows of long texts: where they are, the rows that they have, and the one result of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain import Encoding, Output
from service.errors import InvalidRequest
from service.slices import run_in_slices
from service.tasks.classification import CLASSIFY
from service.tasks.classify_query import ClassifyQuery, Text
from service.tasks.embedding import EMBED, EmbedQuery, encode_texts
from service.tasks.labels import LabelList
from service.tasks.mrc import MRC, MrcQuery, MrcWindowResult, Reading
from service.tasks.task import Task
from service.tasks.text_model import TextModel, pair
from service.tasks.windows import (
    LongTexts,
    Place,
    TextWindow,
    WindowOptions,
    WindowPooling,
    WindowRow,
    find_windows,
    pool,
    read_in_windows,
)
from tests.unit.tasks.models import (
    CLS,
    LETTERS,
    MASK,
    SEP,
    embedder,
    head,
    ids,
    letters,
    log,
    logits,
    matcher,
    text_model,
    yes_of,
)

MODEL = text_model()
WHOLE = WindowOptions()
LABELS = LabelList.of(("甲", "乙"))
STRINGS = st.text(st.sampled_from(f"{LETTERS}words []😀臺é\x00\u200b 　。A1"), max_size=120)


def spans(text: str, room: int, stride: int = 2, **changes: Any) -> list[tuple[int, int]]:
    found = find_windows(text, MODEL, room, WindowOptions(stride, **changes), 1000)
    assert found is not None
    return [(place.start, place.end) for place in found]


def parts_of(rows: Sequence[Encoding]) -> list[tuple[int, int, int]]:
    """The input and the characters of each row of a window."""
    return [(row.place.input, row.place.start, row.place.end) for row in rows if isinstance(row, WindowRow)]


def answer(task: Task[Any, Any], model: TextModel, query: Any, *outputs: Output) -> Any:
    [result] = task.decode(model, query, task.encode(model, query), outputs)
    return result


def of_two(pooling: WindowPooling | None, *outputs: Output, model: TextModel | None = None, **fields: Any) -> Any:
    """The result of a text of 12 tokens in windows of 8 and 4, by a head with rows of 10 tokens."""
    query = ClassifyQuery((Text(letters(12)),), windows=WindowOptions(0, pooling), **fields)
    return answer(CLASSIFY, model or head("负面", "正面", max_length=10), query, *outputs)


# where windows are


def test_neighbouring_windows_share_as_many_tokens_as_the_stride() -> None:
    assert spans(letters(20), 8, stride=3) == [(0, 8), (5, 13), (10, 18), (15, 20)]
    assert spans(letters(20), 8, stride=0) == [(0, 8), (8, 16), (16, 20)]


def test_windows_share_at_most_half_of_their_tokens() -> None:
    assert spans(letters(12), 4, stride=100) == [(0, 4), (2, 6), (4, 8), (6, 10), (8, 12)]


def test_a_text_that_fits_is_one_window() -> None:
    assert spans(letters(8), 8) == [(0, 8)]
    assert spans("", 8) == [(0, 0)]


def test_white_space_belongs_to_the_window_before_it() -> None:
    assert spans("甲乙  丙丁  ", 2, stride=0) == [(0, 4), (4, 8)]


def test_a_word_of_an_alphabet_is_not_divided() -> None:
    text = "甲乙丙words丁"
    assert spans(text, 4, stride=0) == [(0, 3), (3, 9)]
    assert spans("words" * 3, 4, stride=0)[0] == (0, 15)  # unknown, and one token


def test_a_word_that_fills_a_window_is_divided() -> None:
    text = "wordsssss"  # word, and five times ##s
    assert spans(text, 4, stride=0)[0][1] < len(text)
    assert spans(text, 4, stride=0)[-1][1] == len(text)


@settings(deadline=None, max_examples=50)
@given(STRINGS, st.integers(1, 12), st.integers(0, 12))
def test_windows_cover_the_text_in_order_and_each_fits(text: str, room: int, stride: int) -> None:
    found = spans(text, room, stride)
    assert found[0][0] == 0
    assert found[-1][1] == len(text)
    for (start, end), (next_start, next_end) in pairwise(found):
        assert start < next_start <= end < next_end
    for start, end in found:
        assert len(MODEL.tokenize([text[start:end]])[0]) <= room or end == start + 1


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 200), st.integers(1, 30), st.integers(0, 40))
def test_the_overlap_is_the_stride_or_half_a_window(length: int, room: int, stride: int) -> None:
    found = spans(letters(length), room, stride)
    overlaps = {end - start for (_, end), (start, _) in pairwise(found)}
    assert overlaps <= {min(stride, room // 2)}
    assert {end - start for start, end in found[:-1]} <= {room}


def test_the_first_window_alone_is_read_on_request() -> None:
    assert spans(letters(100), 8, pooling="first") == [(0, 8)]


# limits


def test_the_windows_of_a_request_are_limited() -> None:
    model, options = head("负面", "正面", max_length=10), WindowOptions(stride=0, max_windows=5)
    fitting = ClassifyQuery((Text("甲"), Text(letters(24)), Text("乙")), windows=options)
    assert len(CLASSIFY.encode(model, fitting)) == 5
    with pytest.raises(
        InvalidRequest, match=r"^inputs\[1\]\.text: takes more than the 3 windows that are left of the 5 "
    ):
        CLASSIFY.encode(model, replace(fitting, inputs=(Text("甲"), Text(letters(25)), Text("乙"))))


def test_a_request_may_have_as_many_windows_as_inputs() -> None:
    query = EmbedQuery(("甲",) * 7, windows=WindowOptions(max_windows=5))
    assert len(EMBED.encode(text_model(), query)) == 7


def test_a_text_of_too_many_windows_is_not_read_to_its_end() -> None:
    class Counting(str):
        """A text that counts the characters that are cut out of it."""

        num_read = 0

        def __getitem__(self, key: Any) -> str:
            if isinstance(key, slice):
                Counting.num_read += len(range(*key.indices(len(self))))
            return super().__getitem__(key)

    assert find_windows(Counting(letters(500_000)), text_model(), 100, WindowOptions(0), 10) is None
    assert Counting.num_read < 10_000


def test_a_long_text_is_divided_and_its_scores_are_merged_in_slices() -> None:
    pauses: list[int] = []
    query = EmbedQuery((letters(3000), letters(3000)), windows=WindowOptions(0))
    rows = run_in_slices(lambda: EMBED.encode(text_model(max_length=102), query), lambda: pauses.append(0))
    assert len(rows) == 60
    assert len(pauses) > len(rows)
    pauses.clear()
    run_in_slices(lambda: EMBED.decode(MODEL, query, rows, [logits(1.0)] * len(rows)), lambda: pauses.append(0))
    assert len(pauses) >= len(query.inputs)


# rows


def test_each_window_has_the_row_that_its_text_has_by_itself() -> None:
    model, text = text_model(max_length=60), letters(100)
    query = ClassifyQuery((Text(text), Text("丙")), LABELS, question="戊", windows=WindowOptions(10))
    rows = CLASSIFY.encode(model, query)
    free = 60 - len([CLS, MASK, 7, MASK, 8, SEP, 11, SEP, SEP])
    assert parts_of(rows) == [(0, 0, free), (0, free - 10, 2 * free - 10), (0, 2 * free - 20, 100), (1, 0, 1)]
    alone = [Text(text[start:end]) for index, start, end in parts_of(rows) if index == 0]
    wanted = CLASSIFY.encode(model, ClassifyQuery((*alone, Text("丙")), LABELS, question="戊"))
    assert [row.ids.tolist() for row in rows] == [row.ids.tolist() for row in wanted]
    assert [row.continues for row in rows] == [False, True, True, False]
    assert not any(row.truncated for row in rows)


@settings(deadline=None, max_examples=30)
@given(STRINGS, st.sampled_from(["", "戊", "words 戊"]), st.sampled_from([40, 60]), st.integers(0, 30))
def test_no_row_of_a_window_is_cut(text: str, question: str, max_length: int, stride: int) -> None:
    model = replace(MODEL, max_length=max_length)
    query = ClassifyQuery((Text(text * 3), Text("甲")), LABELS, question=question, windows=WindowOptions(stride))
    rows = CLASSIFY.encode(model, query)
    assert not any(row.truncated for row in rows)
    assert max(row.num_tokens for row in rows) <= max_length
    assert [row.continues for row in rows] == [index > 0 and each[0] == 0 for index, each in enumerate(parts_of(rows))]


@pytest.mark.parametrize(
    ("question", "second"),
    [("戊", None), (letters(30), None), (letters(90), None), ("戊", letters(90)), (letters(90),) * 2],
)
def test_a_long_question_or_second_text_leaves_room_for_windows(question: str, second: str | None) -> None:
    query = ClassifyQuery((Text(letters(200), second),), LABELS, question=question, windows=WindowOptions(0))
    rows = CLASSIFY.encode(text_model(max_length=60), query)
    found = parts_of(rows)
    assert found[-1][2] == 200
    for (_, start, end), row in zip(found, rows, strict=True):
        separators = np.flatnonzero(row.ids == SEP)
        assert row.ids[separators[1] + 1 : separators[2]].tolist() == ids(letters(200)[start:end])


@pytest.mark.parametrize("second", [None, "丙", letters(90)])
def test_a_head_reads_windows_next_to_the_second_text(second: str | None) -> None:
    text = letters(200)
    rows = CLASSIFY.encode(
        head("负面", "正面", max_length=60), ClassifyQuery((Text(text, second),), windows=WindowOptions(0))
    )
    for (_, start, end), row in zip(parts_of(rows), rows, strict=True):
        assert row.ids[1 : 1 + end - start].tolist() == ids(text[start:end])
        assert row.truncated is (second is not None and len(second) > 30)


def test_the_windows_of_an_embedding_model_hold_its_prompt() -> None:
    model = embedder(max_length=20, prompts={"query": "是非"}, default_prompt_name="query")
    rows = EMBED.encode(model, EmbedQuery((letters(40),), windows=WindowOptions(4)))
    assert parts_of(rows) == [(0, 0, 16), (0, 12, 28), (0, 24, 40)]
    assert all(row.ids[1:3].tolist() == ids("是非") and not row.truncated for row in rows)


def test_two_models_read_windows_of_their_own_size() -> None:
    choice, partner = text_model(max_length=40), matcher(max_length=102)
    pair([choice, partner])
    query = ClassifyQuery((Text(letters(150)),), LABELS, windows=WindowOptions(0))
    rows = CLASSIFY.encode(choice, query)
    own = [row for row in rows if row.kept_as is None]
    free = 40 - 7
    wanted = [(0, start, min(start + free, 150)) for start in range(0, 150, free)]
    assert parts_of(own) == [*wanted, (0, 0, 100), (0, 100, 150)]
    assert [row.model for row in own] == ["m"] * len(wanted) + ["e"] * 2
    assert len(rows) - len(own) == 4  # two labels in two templates


def read_by(*passes: tuple[TextModel, str]) -> Task[list[str], Any]:
    """A task with a row for each text in each pass, by a model and behind a prompt. A result is a list of what the rows
    of each window have as output, one number for each pass."""

    def encode(model: TextModel, query: list[str]) -> list[Encoding]:
        return [row for reader, prompt in passes for row in encode_texts(reader, query, prompt=prompt)]

    def score(model: TextModel, query: list[str], rows: Sequence[Encoding], outputs: Sequence[Output]) -> list[Any]:
        return [
            np.concatenate([each.scores[0] for each in outputs[index :: len(query)]]) for index in range(len(query))
        ]

    def decode(model: TextModel, query: list[str], rows: Sequence[Encoding], outputs: Sequence[Output]) -> list[Any]:
        raise AssertionError("the texts are read in windows")

    long: LongTexts[list[str], Any] = LongTexts(
        path="inputs[{}]",
        options=lambda query: WindowOptions(0),
        texts=lambda query: query,
        with_texts=lambda query, parts: [text for _, text in parts],
        score=score,
        merge=lambda model, query, numbers, places, rows: numbers.tolist(),
    )
    return read_in_windows(Task("classify", lambda model, query: True, encode, decode), long)


def numbers(rows: Sequence[Encoding]) -> list[Output]:
    """Outputs of rows that are their places."""
    return [logits(float(number)) for number in range(len(rows))]


def test_a_window_is_decided_with_the_window_of_the_other_model_that_holds_most_of_it() -> None:
    model, partner = text_model(max_length=12), embedder("e", max_length=17)
    model.pair(partner)
    task, query = read_by((model, ""), (partner, "")), [letters(38), "甲"]
    rows = task.encode(model, query)
    assert parts_of(rows) == [
        *[(0, 0, 10), (0, 10, 20), (0, 20, 30), (0, 30, 38), (1, 0, 1)],
        *[(0, 0, 15), (0, 15, 30), (0, 30, 38), (1, 0, 1)],
    ]
    # The first two windows of the other model have as much of the window from 10 to 20: the first of them is taken.
    assert task.decode(model, query, rows, numbers(rows)) == [[[0, 5], [1, 5], [2, 6], [3, 7]], [[4, 8]]]


def test_several_rows_of_a_model_hold_the_same_window_which_fits_into_each() -> None:
    model = text_model(max_length=12)
    task, query = read_by((model, ""), (model, "是非")), [letters(12), "甲"]
    rows = task.encode(model, query)
    assert parts_of(rows) == [(0, 0, 8), (0, 8, 12), (1, 0, 1)] * 2
    assert [row.num_tokens for row in rows] == [10, 6, 3, 12, 8, 5]
    assert task.decode(model, query, rows, numbers(rows)) == [[[0, 3], [1, 4]], [[2, 5]]]


# results


@pytest.mark.parametrize("options", [WHOLE, WindowOptions(pooling="mean"), WindowOptions(pooling="max")])
def test_a_text_of_one_window_has_the_scores_that_it_has_without(options: WindowOptions) -> None:
    model, output = text_model(), yes_of([0.7, 0.3])
    query = ClassifyQuery((Text(letters(50)),), LABELS)
    plain = answer(CLASSIFY, model, query, output)
    result = answer(CLASSIFY, model, replace(query, windows=options), output)
    assert (result.scores, result.tokens, result.truncated) == (plain.scores, plain.tokens, plain.truncated)
    assert result.window == TextWindow(0, 0, 50, 1)


def test_a_text_of_one_window_has_the_vector_that_it_has_without() -> None:
    query, output = EmbedQuery(("甲乙",)), Output(np.asarray([[3.0, 4.0]], dtype=np.float32))
    plain = answer(EMBED, text_model(), query, output)
    assert answer(EMBED, text_model(), replace(query, windows=WHOLE), output).embedding == plain.embedding


def test_by_default_labels_have_the_mean_of_the_windows_by_their_tokens() -> None:
    result = of_two(None, logits(*log(0.9, 0.1)), logits(*log(0.3, 0.7)))
    assert result.label == "负面"
    assert result.score == pytest.approx((8 * 0.9 + 4 * 0.3) / 12)
    assert sum(each.score for each in result.scores) == pytest.approx(1)
    assert result.window == TextWindow(0, 0, 8, 2)
    assert (result.tokens, result.truncated) == (10 + 6, False)


def test_with_max_the_window_that_is_most_certain_decides() -> None:
    result = of_two("max", logits(*log(0.8, 0.2)), logits(*log(0.1, 0.9)))
    assert (result.label, result.score) == ("正面", pytest.approx(0.9))
    assert [each.score for each in result.scores] == pytest.approx([0.9, 0.1])
    assert result.window == TextWindow(1, 8, 12, 2)


def test_with_first_the_rest_is_not_read_and_the_reply_says_so() -> None:
    result = of_two("first", logits(*log(0.2, 0.8)))
    assert (result.label, result.truncated, result.window) == ("正面", True, TextWindow(0, 0, 8, 1))


def test_labels_that_are_scored_by_themselves_have_their_highest_score() -> None:
    model = head("甲", "乙", "丙", activation="sigmoid", max_length=10)
    result = of_two(None, logits(-2.0, 3.0, 1.0), logits(2.0, -3.0, 0.0), model=model, top_k=2)
    sigmoid = [1 / (1 + np.exp(-each)) for each in (3.0, 2.0)]
    assert [(each.label, each.score) for each in result.scores] == [
        ("乙", pytest.approx(sigmoid[0])),
        ("甲", pytest.approx(sigmoid[1])),
    ]
    assert result.window.index == 0


def test_a_regression_has_the_mean_of_the_windows() -> None:
    model = head(num_classes=1, activation="identity", max_length=10)
    assert of_two(None, logits(-3.0), logits(6.0), model=model).score == pytest.approx(0)


def test_an_embedding_is_the_mean_of_unit_vectors_by_their_tokens_scaled_to_length_one() -> None:
    model = embedder(max_length=10, normalize=True)
    query = EmbedQuery((letters(12),), windows=WindowOptions(0))
    vectors = [Output(np.asarray([each], dtype=np.float32)) for each in ([6.0, 0.0], [0.0, 0.5])]
    result = answer(EMBED, model, query, *vectors)
    assert result.embedding == pytest.approx(np.asarray([8.0, 4.0]) / np.hypot(8, 4))
    assert result.window == TextWindow(None, 0, 12, 2)
    assert (result.tokens, result.truncated) == (16, False)
    plain = answer(EMBED, model, replace(query, normalize=False), *vectors)
    assert plain.embedding == pytest.approx([6.0 * 8 / 12, 0.5 * 4 / 12])


def test_a_choice_is_decided_by_the_window_that_is_most_certain() -> None:
    model = text_model(max_length=60)
    readings = (Reading(letters(100), "戊", LABELS.names), Reading("丙", "戊", LABELS.names))
    query = MrcQuery(readings, windows=WindowOptions(0))
    rows = MRC.encode(model, query)
    assert parts_of(rows) == [(0, 0, 51), (0, 51, 100), (1, 0, 1)]
    outputs = [yes_of(each) for each in ([0.6, 0.4], [0.05, 0.95], [0.7, 0.3])]
    first, second = MRC.decode(model, query, rows, outputs)
    assert isinstance(first, MrcWindowResult)
    assert (first.answer, first.index, first.window) == ("乙", 1, TextWindow(1, 51, 100, 2))
    assert first.scores == pytest.approx([0.05, 0.95])
    assert (second.answer, second.score) == ("甲", pytest.approx(0.7))
    mean = MRC.decode(model, replace(query, windows=WindowOptions(0, "mean")), rows, outputs)[0]
    assert mean.score == pytest.approx((51 * 0.4 + 49 * 0.95) / 100)


def test_the_errors_of_an_input_name_it_whatever_windows_stand_before_it() -> None:
    readings = (Reading(letters(1000), "戊", LABELS.names), Reading("丙", "戊", ("😀", "😃")))
    with pytest.raises(InvalidRequest, match=r"^inputs\[1\]\.choices"):
        MRC.encode(text_model(), MrcQuery(readings, windows=WHOLE))


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=5),
    st.sampled_from(["mean", "max", "first"]),
    st.booleans(),
)
def test_pooled_numbers_are_within_those_of_the_windows(
    numbers: list[list[float]], pooling: WindowPooling, sum_to_one: bool
) -> None:
    table = np.asarray(numbers)
    places = [Place(0, index, index, index + 1, index) for index in range(len(table))]
    pooled = pool(table, places, pooling, sum_to_one=sum_to_one)
    assert (pooled <= table.max(axis=0).astype(np.float32) + 1e-6).all()
    assert (pooled >= table.min(axis=0).astype(np.float32) - 1e-6).all()
