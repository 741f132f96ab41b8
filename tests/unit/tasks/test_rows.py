"""Plain rows compared with rows written by hand, and truncation."""

from __future__ import annotations

import numpy as np
import pytest

from service.domain import Cls, Encoding
from service.errors import InvalidRequest
from service.tasks.rows import divide, encode_rows, fit
from service.tasks.task import Truncation
from tests.unit.tasks.models import CLS, SEP, VOCAB, ids, letters, lists, text_model


def encode(*texts: str, max_length: int = 512, truncation: Truncation = "right") -> Encoding:
    [row] = encode_rows(text_model(max_length=max_length), [texts], Cls(), truncation)
    return row


def test_encode_a_text() -> None:
    row = encode("甲乙")
    assert lists(row) == ([CLS, 7, 8, SEP], [0, 0, 0, 0], [0, 1, 2, 3])
    assert (row.model, row.readout, row.blocks, row.truncated) == ("m", Cls(), (), False)
    assert {row.ids.dtype, row.segment_ids.dtype, row.positions.dtype} == {np.dtype(np.int32)}


def test_encode_a_pair() -> None:
    wanted = ([CLS, 7, SEP, 8, 9, SEP], [0, 0, 0, 1, 1, 1], [0, 1, 2, 3, 4, 5])
    assert lists(encode("甲", "乙丙")) == wanted


def test_encode_texts_and_pairs_together() -> None:
    rows = encode_rows(text_model(), [("甲",), ("乙", "丙"), ("丁",)], Cls(), "right")
    assert [row.ids.tolist() for row in rows] == [[CLS, 7, SEP], [CLS, 8, SEP, 9, SEP], [CLS, 10, SEP]]


def test_no_inputs_give_no_rows() -> None:
    assert encode_rows(text_model(), [], Cls(), "right") == []


@pytest.mark.parametrize("text", ["", "\x00", "\x01\x02\u200b", " \t\n"])
def test_a_text_without_tokens_has_only_cls_and_sep(text: str) -> None:
    assert lists(encode(text)) == ([CLS, SEP], [0, 0], [0, 1])


def test_special_tokens_in_a_text_are_text() -> None:
    typed = [VOCAB[token] for token in ("[", "sep", "]")]
    assert encode("甲[SEP]乙[SEP]").ids.tolist() == [CLS, 7, *typed, 8, *typed, SEP]


# truncation


def test_a_text_of_the_maximum_length_is_not_truncated() -> None:
    row = encode(letters(510), truncation="error")
    assert (row.num_tokens, row.truncated) == (512, False)


@pytest.mark.parametrize(("truncation", "kept"), [("right", letters(600)[:510]), ("left", letters(600)[90:])])
def test_a_long_text_is_truncated_on_one_side(truncation: Truncation, kept: str) -> None:
    row = encode(letters(600), truncation=truncation)
    assert row.ids.tolist() == [CLS, *ids(kept), SEP]
    assert row.positions.tolist() == list(range(512))
    assert row.truncated


def test_each_text_of_a_pair_is_truncated_on_one_side() -> None:
    first, second = letters(20), letters(30)
    right = encode(first, second, max_length=27)
    left = encode(first, second, max_length=27, truncation="left")
    assert right.ids.tolist() == [CLS, *ids(first[:12]), SEP, *ids(second[:12]), SEP]
    assert left.ids.tolist() == [CLS, *ids(first[8:]), SEP, *ids(second[18:]), SEP]
    assert right.segment_ids.tolist() == [0] * 14 + [1] * 13


@pytest.mark.parametrize("length", [512, 601, 1200, 20_000])
def test_head_and_tail_of_a_long_text_are_kept(length: int) -> None:
    text = letters(length - 1) + "非"
    row = encode(text, truncation="head_tail")
    assert row.ids.tolist() == [CLS, *ids(text[:255] + text[-255:]), SEP]
    assert row.truncated


def test_with_head_and_tail_a_short_text_of_a_pair_stays_whole() -> None:
    text = letters(30)
    row = encode(text, "非", max_length=27, truncation="head_tail")
    assert row.ids.tolist() == [CLS, *ids(text[:12] + text[-11:]), SEP, *ids("非"), SEP]
    assert encode(letters(510), truncation="head_tail").ids.tolist() == [CLS, *ids(letters(510)), SEP]


@pytest.mark.parametrize(("texts", "max_tokens"), [(("甲" * 511,), 510), (("甲" * 500, "乙" * 11), 509)])
def test_a_long_input_is_refused_with_truncation_error(texts: tuple[str, ...], max_tokens: int) -> None:
    with pytest.raises(
        InvalidRequest, match=rf"^inputs\[1\]: takes at least 511 tokens; at most {max_tokens} fit$"
    ) as caught:
        encode_rows(text_model(), [("甲",), texts], Cls(), "error")
    assert caught.value.errors[0].field == "inputs[1]"


def test_fit_to_zero_tokens_from_the_left_keeps_nothing() -> None:
    assert fit([[1, 2], [3]], 0, "left", "f") == [[], []]


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "kept"),
    [
        ((5,), 9, [5]),
        ((5,), 3, [3]),
        ((9, 2), 8, [6, 2]),
        ((2, 9), 8, [2, 6]),
        ((9, 9), 8, [4, 4]),
        ((9, 9), 7, [3, 4]),
        ((9, 1, 5), 9, [4, 1, 4]),
        ((3, 3, 3), 9, [3, 3, 3]),
        ((0, 9), 5, [0, 5]),
        ((4, 4), 0, [0, 0]),
        ((), 5, []),
    ],
)
def test_divide_keeps_short_texts_whole_and_splits_the_rest_evenly(
    lengths: tuple[int, ...], max_tokens: int, kept: list[int]
) -> None:
    assert divide(lengths, max_tokens) == kept
