"""Embedding: the readout of each pooling, and normalised vectors."""

from __future__ import annotations

import pytest

from service.domain import Cls, Mean
from service.errors import InvalidRequest
from service.tasks.embedding import EMBED, EmbedQuery
from tests.unit.tasks.models import CLS, SEP, head, letters, logits, text_model


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
