"""UniMC rows compared with rows written by hand from the formula, truncation, and the tasks built on UniMC."""

from __future__ import annotations

import numpy as np
import pytest

from service.domain import Encoding, Labels, TokenScores
from service.errors import InvalidRequest
from service.tasks.nli import NLI, NliQuery
from service.tasks.similarity import SIMILARITY, SimilarityQuery
from service.tasks.task import Task, Truncation
from service.tasks.text_model import TextModel
from service.tasks.unimc import Choice, encode_choices, probabilities, yes_probabilities
from tests.unit.tasks.models import (
    CLS,
    MASK,
    NO,
    SEP,
    UNK,
    VOCAB,
    YES,
    head,
    ids,
    letters,
    lists,
    log,
    logits,
    text_model,
    yes_no,
    yes_of,
)


def encode(choice: Choice, max_length: int = 512, truncation: Truncation = "right") -> Encoding:
    [row] = encode_choices(text_model(max_length=max_length), [choice], truncation)
    return row


def parts_of(row: Encoding) -> list[list[int]]:
    """The tokens between the [SEP]s after the options."""
    parts: list[list[int]] = [[]]
    for token in row.ids[row.blocks[-1][1] + 1 :].tolist():
        if token == SEP:
            parts.append([])
        else:
            parts[-1].append(token)
    assert parts.pop() == []
    return parts


def options_of(row: Encoding) -> list[list[int]]:
    assert all(row.ids[start] == MASK for start, _ in row.blocks)
    return [row.ids[start + 1 : end].tolist() for start, end in row.blocks]


# the row, by hand: 甲 is 7, 乙 8, 丙 9, 丁 10, 戊 11, 己 12, 庚 13, 辛 14

ROWS = {
    "text": (
        Choice(("甲", "乙丙"), ("丁戊",)),
        [CLS, MASK, 7, MASK, 8, 9, SEP, 10, 11, SEP],
        [0, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        [0, 1, 2, 1, 2, 3, 4, 5, 6, 7],
    ),
    "question and text": (
        Choice(("甲", "乙丙"), ("己庚辛",), "丁戊"),
        [CLS, MASK, 7, MASK, 8, 9, SEP, 10, 11, SEP, 12, 13, 14, SEP],
        [0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
    ),
    "pair": (
        Choice(("甲", "乙丙"), ("丁", "戊己")),
        [CLS, MASK, 7, MASK, 8, 9, SEP, 10, SEP, 11, 12, SEP],
        [0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
        [0, 1, 2, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    ),
    "question and pair": (
        Choice(("甲", "乙丙"), ("戊", "己"), "丁"),
        [CLS, MASK, 7, MASK, 8, 9, SEP, 10, SEP, 11, SEP, 12, SEP],
        [0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
        [0, 1, 2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
    ),
    "the longest option first": (
        Choice(("乙丙", "甲"), ("丁",)),
        [CLS, MASK, 8, 9, MASK, 7, SEP, 10, SEP],
        [0, 1, 1, 1, 1, 1, 1, 0, 0],
        [0, 1, 2, 3, 1, 2, 4, 5, 6],
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_matches_the_formula(name: str) -> None:
    choice, *wanted = ROWS[name]
    row = encode(choice)
    assert list(lists(row)) == wanted
    assert {row.ids.dtype, row.segment_ids.dtype, row.positions.dtype} == {np.dtype(np.int32)}
    assert row.blocks == (((1, 4), (4, 6)) if name == "the longest option first" else ((1, 3), (3, 6)))
    assert row.readout == TokenScores(tuple(start for start, _ in row.blocks), (YES, NO))
    assert (row.model, row.truncated, row.num_tokens) == ("m", False, len(wanted[0]))


def test_an_empty_question_is_omitted() -> None:
    assert lists(encode(Choice(("甲",), ("乙",), ""))) == lists(encode(Choice(("甲",), ("乙",))))


def test_a_single_option_is_encoded_as_a_choice() -> None:
    row = encode(Choice(("甲",), ("乙",)))
    assert lists(row) == ([CLS, MASK, 7, SEP, 8, SEP], [0, 1, 1, 1, 0, 0], [0, 1, 2, 3, 4, 5])
    assert row.blocks == ((1, 3),)


def test_positions_of_a_full_row_end_at_the_last_position() -> None:
    row = encode(Choice(("甲",), (letters(600),)))
    assert row.positions.tolist() == list(range(512))
    assert row.truncated


def test_positions_of_the_text_continue_after_the_longest_option() -> None:
    row = encode(Choice(("甲乙丙", "丁"), (letters(600),)))
    assert row.num_tokens == 512
    assert row.positions[:8].tolist() == [0, 1, 2, 3, 4, 1, 2, 5]
    assert row.positions[8:].tolist() == list(range(6, 510))


def test_rows_with_equal_options_have_equal_blocks() -> None:
    options = ("甲", "乙丙")
    choices = [Choice(options, ("丁",)), Choice(("戊",), ("丁",)), Choice(options, ("己庚",))]
    rows = encode_choices(text_model(), choices, "right")
    assert [lists(row) for row in rows] == [lists(encode(choice)) for choice in choices]
    assert [row.blocks for row in rows] == [((1, 3), (3, 6)), ((1, 3),), ((1, 3), (3, 6))]


def test_no_choices_give_no_rows() -> None:
    assert encode_choices(text_model(), [], "right") == []


# options that are too long

# 480 = 512 - 32 tokens are for the options: their tokens, a mask for each but the first, [CLS] and [SEP]. Those that
# take more are shortened to 384, three quarters of the row.
FITTING = {
    "exactly fit": ((238, 239), (238, 239)),
    "one too many": ((239, 239), (191, 190)),
    "short ones stay": ((2, 500), (2, 379)),
    "equal shares": ((1000, 1000, 1000), (127, 127, 126)),
    "many": ((100, 100, 100, 100, 100), (76, 76, 76, 75, 75)),
}


@pytest.mark.parametrize("name", FITTING)
def test_options_that_leave_less_than_32_tokens_are_shortened(name: str) -> None:
    lengths, kept = FITTING[name]
    options = tuple(letters(length + index)[index:] for index, length in enumerate(lengths))
    row = encode(Choice(options, ("癸",)))
    assert options_of(row) == [ids(option)[:length] for option, length in zip(options, kept, strict=True)]
    assert parts_of(row) == [ids("癸")]
    assert row.truncated is (lengths != kept)


def test_options_are_counted_and_shortened_in_tokens() -> None:
    # 300 words of one token and, with the space, five characters each: 300 tokens fit, twice 300 tokens do not.
    row = encode(Choice(("word " * 300, "甲"), ("乙",)))
    assert options_of(row) == [[VOCAB["word"]] * 300, ids("甲")]
    row = encode(Choice(("word " * 300, letters(300)), ("乙",)))
    assert options_of(row) == [[VOCAB["word"]] * 190, ids(letters(191))]
    assert row.truncated


def test_equal_options_are_shortened_equally_in_every_row() -> None:
    options = (letters(300), letters(300))
    rows = encode_choices(text_model(), [Choice(options, ("甲",)), Choice(options, ("乙",))], "right")
    assert [options_of(row) for row in rows] == [[ids(letters(190))] * 2] * 2
    assert [row.truncated for row in rows] == [True, True]


def test_the_maximum_number_of_options_fits() -> None:
    row = encode(Choice(tuple(chr(0x5000 + index) for index in range(239)), (letters(100),)))
    assert len(row.blocks) == 239
    assert options_of(row) == [[UNK]] * 239
    # 512 - [CLS] - 239 x 2 - two [SEP]
    assert parts_of(row) == [ids(letters(31))]


IMPOSSIBLE = {
    "one more": (240, 1, "240 options take at least 481 tokens; at most 480 fit; send fewer or shorter ones"),
    "300 labels": (300, 1, "300 options take at least 601 tokens; at most 480 fit; send fewer or shorter ones"),
    "300 long labels": (
        300,
        4,
        "300 options take at least 601 tokens even when each is cut to one token; at most 480 fit;"
        " send fewer or shorter ones",
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_too_many_options_are_refused(name: str) -> None:
    count, length, message = IMPOSSIBLE[name]
    options = tuple(chr(0x5000 + index) * length for index in range(count))
    choices = [Choice(("甲",), ("乙",)), Choice(options, ("乙",))]
    with pytest.raises(InvalidRequest) as caught:
        encode_choices(text_model(), choices, "right")
    assert [(error.field, error.message) for error in caught.value.errors] == [("inputs[1].choices", message)]


def test_long_options_are_refused_with_truncation_error() -> None:
    choice = Choice((letters(300), letters(300)), ("甲",))
    with pytest.raises(InvalidRequest, match=r"^labels: 2 options take at least 603 tokens; at most 480 fit; "):
        encode_choices(text_model(), [choice], "error", options_field="labels")


# texts that are too long; 48 tokens, of which two options and their [SEP] take 6


def cut(question: int, *texts: int, truncation: Truncation = "right") -> list[list[int]]:
    texts_of_letters = tuple(letters(length) for length in texts)
    row = encode(Choice(("甲", "乙"), texts_of_letters, letters(question)), 48, truncation)
    kept = parts_of(row)
    assert row.truncated is (sum(map(len, kept)) < question + sum(texts))
    assert row.num_tokens <= 48
    return kept


LENGTHS = {
    "exactly fits": ((0, 41), [41]),
    "one too many": ((0, 42), [41]),
    "a pair that fits": ((0, 30, 10), [30, 10]),
    "the first of a pair is shortened": ((0, 50, 10), [30, 10]),
    "the second of a pair is shortened": ((0, 10, 50), [10, 30]),
    "both of a pair are shortened": ((0, 50, 60), [20, 20]),
    "a question and a text that fit": ((30, 10), [30, 10]),
    "the text is shortened and not the question": ((10, 50), [10, 30]),
    "a long question keeps half": ((30, 30), [20, 20]),
    "a long question and a short text": ((30, 15), [25, 15]),
    "a question and a pair": ((9, 50, 5), [9, 25, 5]),
    "a long question and a long pair": ((50, 50, 50), [19, 10, 10]),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_texts_are_truncated_to_their_shares(name: str) -> None:
    (question, *texts), kept = LENGTHS[name]
    wholes = [length for length in (question, *texts) if length]
    assert cut(question, *texts) == [ids(letters(length)) for length in kept]
    lefts = [ids(letters(whole))[whole - length :] for whole, length in zip(wholes, kept, strict=True)]
    assert cut(question, *texts, truncation="left") == lefts
    both = [
        ids(letters(whole))[: length - length // 2] + ids(letters(whole))[whole - length // 2 :]
        for whole, length in zip(wholes, kept, strict=True)
    ]
    assert cut(question, *texts, truncation="head_tail") == both
    if wholes == kept:
        assert cut(question, *texts, truncation="error") == [ids(letters(length)) for length in kept]
        return
    max_tokens = 48 - 6 - len(wholes)
    with pytest.raises(
        InvalidRequest, match=rf"^inputs\[0\]: takes at least {sum(wholes)} tokens; at most {max_tokens} fit$"
    ):
        cut(question, *texts, truncation="error")


# unusual texts


def test_special_tokens_in_a_text_are_text() -> None:
    typed = [VOCAB[token] for token in ("[", "sep", "]", "[", "mask", "]", "[", "cls", "]")]
    row = encode(Choice(("[SEP][MASK][CLS]",), ("[SEP][MASK][CLS]",), "[SEP][MASK][CLS]"))
    assert row.ids.tolist() == [CLS, MASK, *typed, SEP, *typed, SEP, *typed, SEP]
    assert row.blocks == ((1, 11),)


def test_strings_without_tokens_are_empty_spans() -> None:
    row = encode(Choice(("\x00", "甲"), ("\x07\u200b",), "\x01"))
    assert lists(row) == (
        [CLS, MASK, MASK, 7, SEP, SEP, SEP],
        [0, 1, 1, 1, 1, 0, 0],
        [0, 1, 1, 2, 3, 4, 5],
    )
    assert row.blocks == ((1, 2), (2, 4))


# outputs


def test_probabilities_are_the_softmax_of_yes_over_the_options() -> None:
    output = yes_no((np.log(1), 50), (np.log(3), -50), (np.log(4), 0))
    assert probabilities(output) == pytest.approx([0.125, 0.375, 0.5], abs=1e-7)


def test_a_single_option_is_scored_by_itself() -> None:
    assert probabilities(yes_no((np.log(3), 0))) == pytest.approx([0.75], abs=1e-7)


def test_yes_probabilities_compare_yes_with_no_per_option() -> None:
    output = yes_no((np.log(3), 0), (2.5, 2.5), (-1, np.log(9) - 1))
    assert yes_probabilities(output) == pytest.approx([0.75, 0.5, 0.1], abs=1e-7)


def test_extreme_logits_do_not_overflow() -> None:
    output = yes_no((3e38, -3e38), (-3e38, 3e38))
    assert probabilities(output).tolist() == [1.0, 0.0]
    assert yes_probabilities(output) == pytest.approx([1.0, 0.0], abs=1e-30)


def test_a_vocabulary_without_yes_cannot_choose() -> None:
    model = text_model(yes=None)
    assert not model.can_choose
    with pytest.raises(ValueError, match="no words for yes and no"):
        encode_choices(model, [Choice(("甲",), ("乙",))], "right")


PAIR = (("甲", "乙"),)
SIMILAR = head("不相似", "相似", tasks=("similarity",))
INFERS = head("矛盾", "中立", "蕴含", tasks=("nli",))


def test_similarity_is_a_choice_of_two_options() -> None:
    [row] = SIMILARITY.encode(text_model(), SimilarityQuery(PAIR))
    different, same = ids("不能理解为：乙"), ids("可以理解为：乙")
    assert row.ids.tolist() == [CLS, MASK, *different, MASK, *same, SEP, VOCAB["甲"], SEP]
    assert row.readout == TokenScores((1, 9), (5, 6))


def test_nli_is_a_choice_of_three_options() -> None:
    [row] = NLI.encode(text_model(), NliQuery(PAIR))
    options = [MASK, *ids("不能推断出：乙"), MASK, *ids("很难推断出：乙"), MASK, *ids("可以推断出：乙")]
    assert row.ids.tolist() == [CLS, *options, SEP, VOCAB["甲"], SEP]
    assert row.readout == TokenScores((1, 9, 17), (5, 6))


@pytest.mark.parametrize(
    ("task", "model", "query"), [(SIMILARITY, SIMILAR, SimilarityQuery(PAIR)), (NLI, INFERS, NliQuery(PAIR))]
)
def test_a_fine_tuned_head_encodes_the_pair(task: Task, model: TextModel, query: object) -> None:  # type: ignore[type-arg]
    [row] = task.encode(model, query)
    assert row.ids.tolist() == [CLS, 7, SEP, 8, SEP]
    assert row.readout == Labels()


@pytest.mark.parametrize(("model", "output"), [(text_model(), yes_of([0.3, 0.7])), (SIMILAR, logits(*log(0.3, 0.7)))])
def test_the_similarity_score_is_that_of_the_second_label(model: TextModel, output: object) -> None:
    query = SimilarityQuery(PAIR)
    rows = SIMILARITY.encode(model, query)
    [result] = SIMILARITY.decode(model, query, rows, [output])  # type: ignore[list-item]
    assert result.score == pytest.approx(0.7)
    assert (result.tokens, result.truncated) == (rows[0].num_tokens, False)


def test_the_similarity_score_follows_the_label_name() -> None:
    model, query = head("相似", "不相似", tasks=("similarity",)), SimilarityQuery(PAIR)
    [result] = SIMILARITY.decode(model, query, SIMILARITY.encode(model, query), [logits(*log(0.3, 0.7))])
    assert result.score == pytest.approx(0.3)


THREE = (0.5, 0.2, 0.3)


@pytest.mark.parametrize(
    ("model", "ranking"),
    [
        (text_model(), ["contradiction", "entailment", "neutral"]),
        (INFERS, ["contradiction", "entailment", "neutral"]),
        (head("entailment", "neutral", "contradiction", tasks=("nli",)), ["entailment", "contradiction", "neutral"]),
        (head("蕴含", "矛盾", "中立", tasks=("nli",)), ["entailment", "neutral", "contradiction"]),
        (head("NEUTRAL", "Entailment", "Contradiction", tasks=("nli",)), ["neutral", "contradiction", "entailment"]),
        (head("a", "b", "c", tasks=("nli",)), ["contradiction", "entailment", "neutral"]),
        (head("蕴含", "entailment", "中立", tasks=("nli",)), ["contradiction", "entailment", "neutral"]),
    ],
    ids=["choice", "upstream", "English", "Chinese", "any case", "unknown names", "duplicate name"],
)
def test_nli_labels_follow_the_label_names_of_the_head(model: TextModel, ranking: list[str]) -> None:
    query = NliQuery(PAIR)
    output = yes_of(THREE) if model.can_choose else logits(*log(*THREE))
    [result] = NLI.decode(model, query, NLI.encode(model, query), [output])
    assert [score.label for score in result.scores] == ranking
    assert [score.score for score in result.scores] == pytest.approx([0.5, 0.3, 0.2])
    assert (result.label, result.score) == (ranking[0], result.scores[0].score)


def test_braces_in_a_text_are_not_formatted() -> None:
    [row] = SIMILARITY.encode(text_model(), SimilarityQuery((("甲", "{}{0}"),)))
    assert row.blocks == ((1, 13), (13, 25))  # a mask, six characters of the option, five of the text


def test_a_long_second_text_is_shortened_within_its_option() -> None:
    [row] = SIMILARITY.encode(text_model(), SimilarityQuery((("甲", letters(400)),)))
    assert row.blocks == ((1, 192), (192, 383))
    assert row.ids[2:192].tolist() == ids(("不能理解为：" + letters(400))[:190])
    assert row.truncated


def test_the_error_of_a_pair_that_does_not_fit_names_the_text() -> None:
    pairs = (("甲", "乙"), ("甲", letters(400)))
    with pytest.raises(
        InvalidRequest, match=r"^inputs\[1\]\[1\]: 2 options take at least 815 tokens; at most 480 fit; "
    ):
        SIMILARITY.encode(text_model(), SimilarityQuery(pairs, "error"))
    with pytest.raises(InvalidRequest, match=r"^inputs\[1\]: takes at least 600 tokens; at most 493 fit$"):
        SIMILARITY.encode(text_model(), SimilarityQuery((("甲", "乙"), (letters(600), "乙")), "error"))


def test_which_models_can_do_similarity_and_nli() -> None:
    similarity, nli = SimilarityQuery(PAIR), NliQuery(PAIR)
    models = [text_model(), SIMILAR, INFERS, head("a", "b"), text_model("encoder"), text_model(yes=None)]
    assert [SIMILARITY.can(model, similarity) for model in models] == [True, True, False, False, False, False]
    assert [NLI.can(model, nli) for model in models] == [True, False, True, False, False, False]


def test_a_head_with_another_number_of_labels_cannot() -> None:
    assert not NLI.can(head("yes", "no", tasks=("nli",)), NliQuery(PAIR))
    assert not SIMILARITY.can(head("a", "b", "c", tasks=("similarity",)), SimilarityQuery(PAIR))
