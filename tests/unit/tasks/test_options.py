"""Options stay different when they are shortened, and those that a model cannot tell apart are refused."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain import Encoding
from service.errors import InvalidRequest
from service.tasks.classification import CLASSIFY
from service.tasks.classify_query import ClassifyQuery, Text
from service.tasks.labels import LabelList
from service.tasks.mrc import MRC, MrcQuery, Reading
from service.tasks.nli import NLI, NliQuery
from service.tasks.options import most_alike, shorten
from service.tasks.similarity import SIMILARITY, SimilarityQuery
from service.tasks.task import Truncation
from service.tasks.text_model import TextModel
from service.tasks.tokenizer import SPECIAL, build_tokenizer
from tests.unit.tasks.models import ids, letters, text_model

ASPECTS = (
    "交通是否便利",
    "距离商圈远近",
    "是否容易寻找",
    "排队等候时间",
    "服务人员态度",
    "是否容易停车",
    "点菜上菜速度",
    "价格水平",
    "性价比",
    "折扣力度",
    "装修情况",
    "嘈杂情况",
    "就餐空间",
    "卫生情况",
    "分量",
    "口感",
    "外观",
    "推荐程度",
    "本次消费感受",
    "再次消费的意愿",
)
MOODS = ("正面", "中性", "负面", "未提及")
SCHEMA = tuple(f"{aspect}-{mood}" for aspect in ASPECTS for mood in MOODS)


def model_of(text: str, max_length: int = 512, **flags: bool) -> TextModel:
    """A model whose vocabulary is the characters of `text`."""
    vocab = {token: index for index, token in enumerate(dict.fromkeys((*SPECIAL, "是", "非", *text)))}
    tokenizer = build_tokenizer(vocab, flags)
    return TextModel("mini", "masked-lm", (), (), max_length, tokenizer, 2, 3, 4, vocab["是"], vocab["非"], 8)


def options_of(row: Encoding) -> list[tuple[int, ...]]:
    return [tuple(row.ids[start + 1 : end].tolist()) for start, end in row.blocks]


def words_of(model: TextModel, row: Encoding) -> list[str]:
    return ["".join(map(model.token, option)) for option in options_of(row)]


# shortening


SHORTENED = {
    "what fits": (["甲乙", "丙"], 3, ["甲乙", "丙"]),
    "the longest first": (["甲乙丙丁戊己", "庚辛壬", "癸"], 7, ["甲乙丙", "庚辛壬", "癸"]),
    "equally long ones": (["甲乙丙丁", "乙丙丁戊"], 5, ["甲乙丙", "乙丙"]),
    "the beginning of all": (["甲乙丙丁", "甲乙丙戊"], 4, ["丙丁", "丙戊"]),
    "the beginning of all as a whole": (["甲乙丙丁", "甲乙丙戊"], 2, ["丁", "戊"]),
    "the end of all": (["丁甲乙丙", "戊甲乙丙"], 4, ["丁甲", "戊甲"]),
    "the end of all as a whole": (["丁甲乙丙", "戊甲乙丙"], 2, ["丁", "戊"]),
    "beginning and end": (["甲乙丁丙", "甲乙戊丙"], 4, ["乙丁", "乙戊"]),
    "what some share before what they differ in": (["甲乙丙丁", "甲乙丙戊", "己庚"], 6, ["甲丁", "甲戊", "己庚"]),
    "a long option before what others share": (["甲乙丙", "甲乙丁", "戊己庚辛壬癸"], 8, ["甲丙", "甲丁", "戊己庚辛"]),
    "an option that begins another": (["甲乙丙", "甲乙丙丁戊"], 3, ["甲", "甲丁"]),
    "an option that ends another": (["丙甲乙", "甲乙"], 3, ["丙甲", "甲"]),
    "equal options equally": (["甲乙丙", "甲乙丙"], 4, ["甲乙", "甲乙"]),
    "one option": (["甲乙丙"], 2, ["甲乙"]),
    "one token of each at least": (["甲乙", "丙丁"], 0, ["甲", "丙"]),
}


@pytest.mark.parametrize("name", SHORTENED)
def test_the_longest_and_the_shared_parts_are_shortened_first(name: str) -> None:
    options, max_tokens, wanted = SHORTENED[name]
    assert shorten([ids(option) for option in options], max_tokens) == [ids(option) for option in wanted]


TOKENS = st.integers(0, 3)
FAMILIES = st.tuples(
    st.lists(st.lists(TOKENS, max_size=12), min_size=1, max_size=4),
    st.lists(st.lists(TOKENS, max_size=12), min_size=1, max_size=8),
    st.lists(st.lists(TOKENS, max_size=12), min_size=1, max_size=3),
)
"""Beginnings, middles and ends: the options are all that can be made of them."""


@settings(deadline=None)
@given(FAMILIES, st.integers(0, 200), st.randoms(use_true_random=False))
def test_different_options_stay_different_in_any_order(
    parts: tuple[list[list[int]], list[list[int]], list[list[int]]], max_tokens: int, draw: random.Random
) -> None:
    beginnings, middles, ends = parts
    options = [list(each) for each in {(*a, *b, *c) for a in beginnings for b in middles for c in ends} if each] or [
        [0]
    ]
    shortened = shorten(options, max_tokens)
    assert len(set(map(tuple, shortened))) == len(options)
    assert all(shortened)
    size, fewest = sum(map(len, shortened)), sum(map(len, shorten(options, 0)))
    assert size <= max(max_tokens, fewest)
    assert (shortened == options) is (sum(map(len, options)) <= max(max_tokens, fewest))
    for whole, short in zip(options, shortened, strict=True):
        rest = iter(whole)
        assert all(token in rest for token in short), "tokens are left out, none is added or moved"
    order = list(range(len(options)))
    draw.shuffle(order)
    assert shorten([options[index] for index in order], max_tokens) == [shortened[index] for index in order]


def test_options_that_halving_keeps_different_are_never_too_many() -> None:
    draw = random.Random(1)
    for _ in range(200):
        options = list({tuple(draw.choices(range(4), k=draw.randint(1, 20))) for _ in range(30)})
        halves = {option[: max(1, len(option) // 2)] for option in options}
        if len(halves) == len(options):
            assert sum(map(len, shorten([list(option) for option in options], 0))) <= sum(map(len, halves))


def test_a_schema_of_aspects_and_moods_keeps_every_mood() -> None:
    model = model_of("".join(SCHEMA))
    [row] = MRC.encode(model, MrcQuery((Reading("口感", "口感", SCHEMA),)))
    assert row.truncated
    words = words_of(model, row)
    assert len(set(words)) == len(SCHEMA)
    assert [word[-len(mood) :] for word, mood in zip(words, MOODS * len(ASPECTS), strict=True)] == list(
        MOODS * len(ASPECTS)
    )
    assert words[SCHEMA.index("口感-负面")] in ("口感负面", "口负面")


def test_numbered_addresses_keep_their_numbers() -> None:
    numbers = [f"{tens}十{ones}" for tens in "二三四五" for ones in "一二三四五六七八"]
    addresses = tuple(f"北京市海淀区中关村大街{number}号院" for number in numbers)
    model = model_of("".join(addresses))
    [row] = CLASSIFY.encode(model, ClassifyQuery((Text("北京"),), LabelList.of(addresses)))
    assert row.truncated
    words = words_of(model, row)
    assert len(set(words)) == len(addresses)
    for number, word in zip(numbers, words, strict=True):
        assert (number[0] in word, number[2] in word) == (True, True)


@pytest.mark.parametrize("truncation", ["right", "left"])
def test_long_options_are_read_from_their_start(truncation: Truncation) -> None:
    options = (f"甲{letters(5000)}", f"乙{letters(5000)}")
    query = ClassifyQuery((Text(letters(900)),), LabelList.of(options), truncation=truncation)
    [row] = CLASSIFY.encode(text_model(), query)
    first, second = options_of(row)
    assert first == tuple(ids(options[0])[: len(first)])
    assert second == tuple(ids(options[1])[: len(second)])
    assert row.num_tokens == 512


def test_options_that_differ_late_in_the_row_stay_different() -> None:
    options = (f"{letters(500)}甲", f"{letters(500)}乙")
    [row] = CLASSIFY.encode(text_model(), ClassifyQuery((Text("丙"),), LabelList.of(options)))
    first, second = options_of(row)
    assert (first[-1], second[-1]) == tuple(ids("甲乙"))
    assert first[:-1] == second[:-1] == tuple(ids(letters(500)))[-len(first) + 1 :]


def test_choices_that_cannot_be_shortened_and_stay_different_are_refused_by_name() -> None:
    # Each label is a number in base 2 of 9 digits: it cannot do without any of them.
    labels = tuple(f"{number:09b}".replace("0", "甲").replace("1", "乙") for number in range(200))
    with pytest.raises(InvalidRequest) as caught:
        MRC.encode(text_model(), MrcQuery((Reading("丙", "丁", labels),)))
    [error] = caught.value.errors
    assert error.field == "inputs[0].choices"
    assert error.message.startswith("200 options take at least ")
    assert "even when each is cut to what differs from the others" in error.message
    assert (
        "(inputs[0].choices[0] and inputs[0].choices[1] begin alike); at most 480 fit; send fewer or shorter ones"
        in error.message
    )


def test_the_most_alike_options_share_the_longest_beginning() -> None:
    assert most_alike([ids("甲乙丙"), ids("丁"), ids("甲乙丁"), ids("甲丙")]) == (0, 2)


# options that the model cannot tell apart

UNCASED = model_of("体育apple店a。")
ALIKE = {
    "emoji": ("😀", "😡", "both become [UNK], because its vocabulary has none of their characters"),
    "rare characters": ("㛃体", "㛄体", "they differ only in characters or words that its vocabulary does not have"),
    "case": ("Apple店", "APPLE店", "they differ only in case, which it does not see"),
    "accents": ("ápple", "apple", "they differ only in accents, which it does not see"),
    "a zero width space": ("体\u200b育", "体育", "they differ only in white space or invisible characters"),
    "white space": ("体 育", "体育", "they differ only in white space or invisible characters"),
    "case and accents": ("Ápple", "apple", "they differ only in case, accents, white space,"),
    "a canonical form": ("a\u0301", "á", "they differ only in accents"),
}


def refusal(model: TextModel, labels: tuple[str, ...]) -> list[tuple[str, str]]:
    with pytest.raises(InvalidRequest) as caught:
        CLASSIFY.encode(model, ClassifyQuery((Text("体"),), LabelList.of(labels)))
    assert not any(label in caught.value.detail for label in labels)
    return [(error.field, error.message) for error in caught.value.errors]


@pytest.mark.parametrize("name", ALIKE)
def test_labels_with_the_same_tokens_are_refused_with_the_reason(name: str) -> None:
    first, second, why = ALIKE[name]
    [(field, message)] = refusal(UNCASED, ("体。", first, "育。", second))
    assert field == "labels[3]"
    assert message.startswith(f"is the same to mini as labels[1]: {why}")
    assert message.endswith("; use other words for one of them")


def test_labels_that_only_a_cased_model_tells_apart_are_accepted_by_it() -> None:
    labels = ("Apple", "apple")
    cased = model_of("Aaple", do_lower_case=False)
    [(field, _)] = refusal(model_of("aple"), labels)
    assert field == "labels[1]"
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, "是", "非", "Apple", "apple"))}
    tokenizer = build_tokenizer(vocabulary, {"do_lower_case": False})
    model = TextModel("cased", "masked-lm", (), (), 512, tokenizer, 2, 3, 4, 5, 6, 8)
    [row] = CLASSIFY.encode(model, ClassifyQuery((Text("a"),), LabelList.of(labels)))
    assert options_of(row) == [(7,), (8,)]
    assert cased.can_choose


@pytest.mark.parametrize("labels", [("体", "\u200b"), ("\x07",), ("\x00", "\u200b")])
def test_a_label_without_tokens_is_refused(labels: tuple[str, ...]) -> None:
    [(field, message)] = refusal(UNCASED, labels)
    assert field == ("labels[1]" if labels[0] == "体" else "labels[0]")
    assert message.startswith("has no token for mini: all of its characters are invisible")


def test_labels_that_differ_only_beyond_the_row_are_refused_with_its_length() -> None:
    labels = tuple(f"{letters(length)}{end}" for length, end in ((600, "甲"), (600, "乙"), (90_000, "丙")))
    [(field, message)] = refusal(text_model(), labels)
    assert field == "labels[1]"
    assert "as labels[0]: their first 512 tokens are the same, and more do not fit into a row;" in message


def test_choices_with_the_same_tokens_are_refused_with_their_input() -> None:
    readings = (Reading("体", "育", ("体", "育")), Reading("体", "育", ("体", "😀", "😡")))
    with pytest.raises(InvalidRequest) as caught:
        MRC.encode(UNCASED, MrcQuery(readings))
    [error] = caught.value.errors
    assert error.field == "inputs[1].choices[2]"
    assert error.message.startswith("is the same to mini as inputs[1].choices[1]: both become [UNK]")


def test_pairs_of_unknown_texts_are_not_refused() -> None:
    pairs = (("甲", "😀"), ("甲", "\u200b"), ("😀", "甲"))
    rows = SIMILARITY.encode(text_model(), SimilarityQuery(pairs)) + NLI.encode(text_model(), NliQuery(pairs))
    assert [len(set(options_of(row))) for row in rows] == [2, 2, 2, 3, 3, 3]


BEGINNINGS = st.sampled_from(["", "甲乙", "甲乙丙丁" * 9, "甲"])
ENDINGS = st.text("甲乙Aaá😀😡 \u200b是", min_size=1, max_size=30)
LABELS = st.lists(st.builds(str.__add__, BEGINNINGS, ENDINGS), min_size=1, max_size=60, unique=True).map(tuple)


@settings(deadline=None)
@given(LABELS, st.sampled_from([64, 128, 512]), st.sampled_from(["right", "left", "error"]))
def test_labels_are_encoded_differently_or_refused(
    labels: tuple[str, ...], max_length: int, truncation: Truncation
) -> None:
    model = text_model(max_length=max_length)
    refused: list[str] = []
    rows: list[Encoding] = []
    try:
        rows = CLASSIFY.encode(model, ClassifyQuery((Text("丙"),), LabelList.of(labels), truncation=truncation))
    except InvalidRequest as error:
        refused = [each.field for each in error.errors]
    assert bool(rows) + len(refused) == 1
    assert all(field.startswith("labels") for field in refused)
    options = [option for row in rows for option in options_of(row)]
    if rows:
        assert len(set(options)) == len(labels)
        assert all(options)
        whole = model.tokenize(labels)
        if sum(map(len, whole)) + len(labels) + 1 <= max_length - 32:
            assert options == list(map(tuple, whole))
