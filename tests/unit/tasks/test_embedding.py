"""Embedding: the readout of each pooling, normalised vectors, and what an embedding model declares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.checkpoints.sentence_modules import Dense
from service.domain import Cls, Encoding, Mean, Pooled, PoolingMode, Readout
from service.errors import InvalidRequest
from service.tasks.embedding import EMBED, EmbedQuery
from service.tasks.task import NUMBER_BYTES, Truncation
from service.tasks.text_model import TextModel
from service.tasks.tokenizer import build_tokenizer
from tests.unit.tasks.models import CLS, SEP, VOCAB, embedder, head, ids, letters, logits, text_model


def vector(*values: float, normalize: bool = True) -> tuple[float, ...]:
    query = EmbedQuery(("甲",), normalize=normalize)
    [result] = EMBED.decode(text_model(), query, EMBED.encode(text_model(), query), [logits(*values)])
    assert (result.tokens, result.truncated) == (3, False)
    return result.embedding


def test_pooling_selects_the_readout() -> None:
    [mean] = EMBED.encode(text_model(), EmbedQuery(("甲",)))
    [first] = EMBED.encode(text_model(), EmbedQuery(("甲",), pooling="cls"))
    assert (mean.readout, first.readout) == (Mean(), Cls())
    assert mean.ids.tolist() == first.ids.tolist() == [CLS, 7, SEP]


def test_a_vector_is_normalised_to_length_one() -> None:
    assert vector(3, -4) == pytest.approx((0.6, -0.8), abs=1e-7)


def test_a_vector_is_unchanged_without_normalize() -> None:
    assert vector(3, -4, normalize=False) == (3.0, -4.0)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_zero_vector_stays_zero(normalize: bool) -> None:
    assert vector(0, 0, normalize=normalize) == (0.0, 0.0)


def test_normalising_large_values_does_not_overflow() -> None:
    assert vector(3e30, 4e30) == pytest.approx((0.6, 0.8), abs=1e-6)


def test_a_long_text_is_truncated_or_refused() -> None:
    query = EmbedQuery((letters(600),))
    [row] = EMBED.encode(text_model(), query)
    [result] = EMBED.decode(text_model(), query, [row], [logits(1)])
    assert (result.tokens, result.truncated) == (512, True)
    with pytest.raises(InvalidRequest, match=r"^inputs\[0\]: takes at least 600 tokens; at most 510 fit$"):
        EMBED.encode(text_model(), EmbedQuery((letters(600),), truncation="error"))


def test_every_model_can_embed() -> None:
    models = [text_model(), text_model(yes=None), head("a", "b"), text_model("encoder")]
    assert all(EMBED.can(model, EmbedQuery(("甲",))) for model in models)


# embedding models


def rows(model: TextModel, *texts: str, **query: Any) -> list[Encoding]:
    return EMBED.encode(model, EmbedQuery(texts, **query))


@pytest.mark.parametrize(
    ("pooling", "readout"),
    [
        (("cls",), Cls()),
        (("mean",), Mean()),
        (("max",), Pooled(("max",))),
        (("cls", "mean"), Pooled(("cls", "mean"))),
    ],
)
def test_the_declared_pooling_is_the_default(pooling: tuple[PoolingMode, ...], readout: Readout) -> None:
    [row] = rows(embedder(pooling=pooling), "甲")
    assert row.readout == readout
    [row] = rows(embedder(pooling=pooling), "甲", pooling="lasttoken")
    assert row.readout == Pooled(("lasttoken",))


def test_dense_layers_follow_the_pooling_of_the_request() -> None:
    dense = (Dense(Path("2_Dense"), 8, 4),)
    [row] = rows(embedder(dense=dense), "甲")
    assert row.readout == Pooled(("cls",), is_projected=True)
    [row] = rows(embedder(dense=dense), "甲", pooling="mean")
    assert row.readout == Pooled(("mean",), is_projected=True)


def test_dense_layers_of_several_poolings_refuse_another_number() -> None:
    model = embedder(pooling=("cls", "mean"), dense=(Dense(Path("2_Dense"), 16, 4),))
    with pytest.raises(InvalidRequest, match=r"^pooling: the model has dense layers after cls and mean, which take no"):
        rows(model, "甲", pooling="cls")


@pytest.mark.parametrize(
    ("declared", "normalize", "wanted"),
    [(True, None, (0.6, -0.8)), (False, None, (3, -4)), (True, False, (3, -4)), (False, True, (0.6, -0.8))],
)
def test_the_declared_normalization_is_the_default(
    declared: bool, normalize: bool | None, wanted: tuple[float, float]
) -> None:
    model, query = embedder(normalize=declared), EmbedQuery(("甲",), normalize=normalize)
    [result] = EMBED.decode(model, query, EMBED.encode(model, query), [logits(3, -4)])
    assert result.embedding == pytest.approx(wanted, abs=1e-7)


PROMPTS = {"prompts": {"query": "丁戊", "passage": "戊"}, "default_prompt_name": "query"}


@pytest.mark.parametrize(
    ("query", "before"),
    [
        ({}, "丁戊"),
        ({"prompt_name": "passage"}, "戊"),
        ({"prompt": "己"}, "己"),
        ({"prompt": ""}, ""),
    ],
)
def test_a_prompt_is_put_before_each_text(query: dict[str, str], before: str) -> None:
    found = [row.ids.tolist() for row in rows(embedder(**PROMPTS), "甲", "乙丙", **query)]
    assert found == [[CLS, *ids(f"{before}甲"), SEP], [CLS, *ids(f"{before}乙丙"), SEP]]


def test_an_unknown_prompt_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(InvalidRequest, match=r"^prompt_name: m has no such prompt; its prompts are query, passage$"):
        rows(embedder(**PROMPTS), "甲", prompt_name="document")
    with pytest.raises(InvalidRequest, match=r"^prompt_name: m has no such prompt; it declares none; send `prompt`$"):
        rows(text_model(), "甲", prompt_name="query")


def test_any_model_takes_the_text_of_a_prompt() -> None:
    [row] = rows(text_model(), "甲", prompt="乙")
    assert (row.ids.tolist(), row.readout) == ([CLS, *ids("乙甲"), SEP], Mean())


@pytest.mark.parametrize(
    ("truncation", "kept"),
    [("right", letters(6)), ("left", letters(20)[-6:]), ("head_tail", "甲乙" + letters(20)[-4:])],
)
def test_a_long_text_is_cut_and_its_prompt_is_kept(truncation: Truncation, kept: str) -> None:
    [row] = rows(embedder(max_length=10), letters(20), prompt="是非", truncation=truncation)
    assert row.ids.tolist() == [CLS, *ids("是非" + kept), SEP]
    assert row.truncated


def test_a_prompt_of_more_than_half_a_row_is_kept_with_head_and_tail() -> None:
    [row] = rows(embedder(max_length=10), letters(20), prompt="是非是非是非", truncation="head_tail")
    assert row.ids.tolist() == [CLS, *ids("是非是非是非" + letters(20)[-2:]), SEP]


def test_the_longest_text_is_that_of_the_embedding_model() -> None:
    model = embedder(max_length=10)
    assert [row.num_tokens for row in rows(model, letters(8), letters(9))] == [10, 10]
    with pytest.raises(InvalidRequest, match=r"^inputs\[1\]: takes at least 9 tokens; at most 8 fit$"):
        rows(model, letters(8), letters(9), truncation="error")


def test_a_prompt_must_leave_room_for_a_text() -> None:
    [row] = rows(embedder(max_length=10), "甲乙丙", prompt=letters(7))
    assert row.ids.tolist() == [CLS, *ids(f"{letters(7)}甲"), SEP]
    with pytest.raises(InvalidRequest, match=r"^prompt: takes at least 8 tokens; at most 7 leave room for a text$"):
        rows(embedder(max_length=10), "甲", prompt=letters(8))


@pytest.mark.parametrize(("prompt", "num_skipped"), [("乙丙", 3), ("", 0)])
def test_a_prompt_may_be_left_out_of_the_pooling(prompt: str, num_skipped: int) -> None:
    [row] = rows(embedder(include_prompt=False, pooling=("mean", "cls")), "甲", prompt=prompt)
    assert row.readout == Pooled(("mean", "cls"), num_skipped)
    [row] = rows(embedder(include_prompt=False), "甲", prompt=prompt)
    assert row.readout == (Pooled(("cls",), num_skipped) if prompt else Cls())


def test_texts_and_prompts_are_put_into_lower_case() -> None:
    model = replace(embedder(lower_case=True), tokenizer=build_tokenizer(VOCAB, {"do_lower_case": False}))
    [row] = rows(model, "WORDS", prompt="SEP ")
    assert row.ids.tolist() == [CLS, VOCAB["sep"], VOCAB["word"], VOCAB["##s"], SEP]


def test_the_estimated_reply_has_the_dimensions_of_the_model() -> None:
    query = EmbedQuery(("甲", "乙"))
    assert EMBED.reply_bytes(embedder(dimensions=1024), query) == 2 * 1024 * NUMBER_BYTES
    assert EMBED.reply_bytes(text_model(), query) == 2 * 8 * NUMBER_BYTES
