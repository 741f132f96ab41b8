"""The stream of training batches: drawing, varying, masking and bucketing of examples, and determinism."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from service.checkpoints.checkpoint import describe
from service.domain import Labels
from service.errors import SettingError
from service.tasks.rows import encode_rows
from service.tasks.text_model import TextModel
from service.tasks.unimc import encode_choices
from service.tools.data.converters import Example
from service.tools.training.recipe import Optimizer, Recipe, Stage
from service.tools.training.stream import (
    IGNORED,
    SNIPPETS,
    Row,
    Stream,
    by_length,
    crop,
    deal,
    mask_tokens,
    snippets,
    vary,
)
from tests.checkpoints import make_checkpoint

LABELS = ("体育", "财经", "教育", "科技", "军事", "旅游", "国际", "股票")
NEWS = [Example("classify", (f"新闻{'好' * length}",), LABELS, length % 8, "哪一类？") for length in range(1, 30)]
TEXTS = [
    "今天天气很好，我们一起出去走走看看吧",
    "他在学校里教数学，已经有三十年的时间",
    "这本书写得真不错，值得再从头看一次的",
    "公司今年的业务，比去年有了很大的发展",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    folder = make_checkpoint(tmp_path_factory.mktemp("stream") / "model")
    return TextModel.load(describe(folder, "model"))


def recipe(**changes: object) -> Recipe:
    stage = Stage(steps=12, mixture={"tnews/train": 2, SNIPPETS: 1}, masked_texts=0.2, mask_rate=0.2)
    small = Recipe(
        seed=3, max_length=64, stages=(stage,), dev=("tnews/dev",), optimizer=Optimizer(tokens_per_batch=300)
    )
    return small.model_copy(update=changes)


def rows_of(stream: Stream) -> list[list[tuple[list[int], int, tuple[tuple[int, int], ...]]]]:
    return [[(row.encoding.ids.tolist(), row.answer, row.masked) for row in batch] for batch in stream]


def test_batches_are_determined_by_the_seed(model: TextModel) -> None:
    first, again = (Stream(recipe(), model, {"tnews/train": NEWS}, TEXTS) for _ in range(2))
    other = Stream(recipe(seed=4), model, {"tnews/train": NEWS}, TEXTS)
    assert rows_of(first) == rows_of(again)
    assert rows_of(first) != rows_of(other)


def test_the_number_of_batches_is_steps_times_batches_per_step(model: TextModel) -> None:
    doubled = recipe(optimizer=Optimizer(tokens_per_batch=300, batches_per_step=2))
    assert len(list(Stream(recipe(), model, {"tnews/train": NEWS}, TEXTS))) == 12
    assert len(list(Stream(doubled, model, {"tnews/train": NEWS}, TEXTS))) == 24


def test_batches_are_within_the_token_budget_and_rows_within_max_length(model: TextModel) -> None:
    for batch in Stream(recipe(), model, {"tnews/train": NEWS}, TEXTS):
        longest = max(row.encoding.num_tokens for row in batch)
        assert longest <= 64
        assert longest * len(batch) <= 300


def test_head_form_has_plain_rows_with_the_class_as_answer(model: TextModel) -> None:
    stage = Stage(steps=2, mixture={"tnews/train": 1})
    stream = Stream(recipe(form="head", stages=(stage,)), model, {"tnews/train": NEWS}, [])
    for batch in stream:
        for row in batch:
            assert row.encoding.readout == Labels()
            assert row.answer == (row.encoding.num_tokens - 4) % 8  # [CLS] 新 闻 好... [SEP]


def test_by_length_sorts_and_keeps_every_row(model: TextModel) -> None:
    encodings = encode_rows(model, [("好" * length,) for length in (9, 3, 30, 5, 3)], Labels(), "right")
    batches = list(by_length([Row(encoding) for encoding in encodings], Optimizer(tokens_per_batch=24)))
    assert [[row.encoding.num_tokens for row in batch] for batch in batches] == [[5, 5, 7], [11], [32]]
    capped = list(by_length([Row(encoding) for encoding in encodings], Optimizer(rows_per_batch=2)))
    assert [len(batch) for batch in capped] == [2, 2, 1]


def test_vary_keeps_the_answer_among_the_options_drawn() -> None:
    draw = random.Random(1)
    for _ in range(100):
        varied = vary(NEWS[4], 4, (), draw)
        assert 2 <= len(varied.options) <= 4
        assert varied.options[varied.answer] == LABELS[NEWS[4].answer]
        assert list(varied.options) == [label for label in LABELS if label in varied.options]
    assert vary(NEWS[4], 0, (), draw) is NEWS[4]


def test_vary_draws_every_wording() -> None:
    review = Example("classify", ("不错",), ("差评", "好评"), 1)
    draw = random.Random(1)
    drawn = Counter(vary(review, 6, [("负面", "正面")], draw).options for _ in range(100))
    assert set(drawn) == {("差评", "好评"), ("负面", "正面")}


def test_mask_tokens_leaves_options_and_special_tokens_unmasked(model: TextModel) -> None:
    [encoding] = encode_choices(model, [NEWS[20].as_choice()], "right")
    row = mask_tokens(model, Row(encoding, 1), 1.0, random.Random(1))
    first = encoding.blocks[-1][1] + 1
    assert row.encoding.ids[:first].tolist() == encoding.ids[:first].tolist()
    assert {position for position, _ in row.masked} == {
        position for position in range(first, encoding.num_tokens) if encoding.ids[position] != model.sep
    }
    assert all(token == encoding.ids[position] for position, token in row.masked)
    assert not np.array_equal(row.encoding.ids, encoding.ids)
    assert row.answer == 1


def test_snippets_come_from_the_text_that_is_the_answer() -> None:
    for example in islice(snippets(TEXTS, random.Random(5)), 200):
        [text] = example.texts
        snippet = example.options[example.answer]
        sources = [whole for whole in TEXTS if snippet in whole]
        assert any(text in (source, source.replace(snippet, "，", 1)) for source in sources)


def test_snippets_need_texts() -> None:
    with pytest.raises(SettingError, match="at least 4 texts"):
        next(snippets(TEXTS[:3], random.Random(1)))


def test_a_plain_masked_text_has_no_answer(model: TextModel) -> None:
    stage = Stage(steps=1, mixture={"tnews/train": 1}, masked_texts=1.0)
    [batch] = Stream(recipe(stages=(stage,)), model, {"tnews/train": NEWS}, TEXTS)
    assert {row.answer for row in batch} == {IGNORED}


def test_deal_gives_every_example_before_it_repeats_one() -> None:
    dealt = list(islice(deal(NEWS, random.Random(2)), 2 * len(NEWS)))
    for half in (dealt[: len(NEWS)], dealt[len(NEWS) :]):
        assert sorted(half, key=NEWS.index) == NEWS


def test_crop_leaves_a_window_of_the_text() -> None:
    draw = random.Random(3)
    long, short = Example("classify", ("体育新闻今天开始",), LABELS, 0), Example("classify", ("好", "二"), LABELS, 0)
    lengths = set()
    for _ in range(200):
        [window] = crop(long, draw).texts
        assert window in long.texts[0]
        lengths.add(len(window))
    assert lengths == {4, 5, 6, 7, 8}
    assert crop(short, draw) == short


def test_only_sources_named_in_crops_are_cropped(model: TextModel) -> None:
    stage = Stage(steps=12, mixture={"tnews/train": 1, "other": 1}, crops={"other": 1.0})
    whole = [Example("classify", ("上" * 30,), LABELS, 0)]
    cropped = [Example("classify", ("下" * 30,), LABELS, 0)]
    stream = Stream(recipe(stages=(stage,)), model, {"tnews/train": whole, "other": cropped}, [])
    up, down = model.tokenize(["上", "下"])
    counts = {"up": set(), "down": set()}
    for row in (row for batch in stream for row in batch):
        ids = row.encoding.ids.tolist()
        counts["up"].add(ids.count(up[0]))
        counts["down"].add(ids.count(down[0]))
    assert counts["up"] == {0, 30}
    assert len(counts["down"]) > 3
