"""Fill-mask: the only task in which [MASK] in a text is a mask token."""

from __future__ import annotations

import numpy as np
import pytest

from service.domain import Encoding, Output, TopTokens
from service.errors import InvalidRequest
from service.tasks.fill_mask import FILL_MASK, FillMaskQuery, TokenProbability
from service.tasks.task import Truncation
from tests.unit.tasks.models import CLS, MASK, SEP, VOCAB, head, ids, letters, text_model


def encode(text: str, truncation: Truncation = "right", max_length: int = 512) -> Encoding:
    [row] = FILL_MASK.encode(text_model(max_length=max_length), FillMaskQuery((text,), 3, truncation))
    return row


@pytest.mark.parametrize(
    ("text", "middle", "positions"),
    [
        ("甲[MASK]乙", [7, MASK, 8], (2,)),
        ("[MASK]", [MASK], (1,)),
        ("[MASK][MASK]甲[MASK]", [MASK, MASK, 7, MASK], (1, 2, 4)),
        ("word[MASK]s", [VOCAB["word"], MASK, 1], (2,)),
        ("\x00[MASK]", [MASK], (1,)),
    ],
)
def test_mask_in_a_text_is_a_mask_token(text: str, middle: list[int], positions: tuple[int, ...]) -> None:
    row = encode(text)
    assert row.ids.tolist() == [CLS, *middle, SEP]
    assert row.readout == TopTokens(positions, 3)


def test_other_special_tokens_and_lower_case_mask_are_text() -> None:
    typed = [VOCAB[token] for token in ("[", "sep", "]", "[", "mask", "]")]
    row = encode("[SEP][mask][MASK]")
    assert row.ids.tolist() == [CLS, *typed, MASK, SEP]
    assert row.readout == TopTokens((7,), 3)


def test_a_text_without_a_mask_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"^inputs\[1\]: has no \[MASK\]$"):
        FILL_MASK.encode(text_model(), FillMaskQuery(("[MASK]", "[mask]甲")))


def test_a_long_text_is_truncated_when_its_masks_are_kept() -> None:
    right = encode(f"[MASK]{letters(20)}", max_length=10)
    left = encode(f"{letters(20)}[MASK]", "left", max_length=10)
    assert right.ids.tolist() == [CLS, MASK, *range(7, 14), SEP]
    assert left.ids.tolist() == [CLS, *range(10, 17), MASK, SEP]
    assert (right.readout, left.readout) == (TopTokens((1,), 3), TopTokens((8,), 3))
    assert right.truncated
    assert left.truncated


def test_masks_at_both_ends_of_a_long_text_are_kept_with_head_and_tail() -> None:
    row = encode(f"[MASK]{letters(900)}[MASK]", "head_tail", max_length=10)
    assert row.ids.tolist() == [CLS, MASK, *ids(letters(3)), *ids(letters(900)[-3:]), MASK, SEP]
    assert row.readout == TopTokens((1, 8), 3)


@pytest.mark.parametrize(
    ("truncation", "text"),
    [("right", "[MASK]{}[MASK]"), ("left", "[MASK]{}[MASK]"), ("head_tail", "[MASK]{0}[MASK]{0}")],
)
def test_a_text_whose_mask_would_be_truncated_is_refused(truncation: Truncation, text: str) -> None:
    problem = r"only 1 of its 2 \[MASK\] are within the 512 tokens that the model reads"
    with pytest.raises(InvalidRequest, match=rf"^inputs\[0\]: {problem}$"):
        encode(text.format(letters(600)), truncation)


def test_a_long_text_is_refused_with_truncation_error() -> None:
    with pytest.raises(InvalidRequest, match=r"^inputs\[0\]: takes at least 601 tokens; at most 510 fit$"):
        encode(f"[MASK]{letters(600)}", "error")


def test_top_k_above_the_vocabulary_size_is_refused() -> None:
    assert FILL_MASK.encode(text_model(), FillMaskQuery(("[MASK]",), top_k=len(VOCAB)))
    with pytest.raises(
        InvalidRequest, match=rf"^top_k: is {len(VOCAB) + 1}; the vocabulary of m has {len(VOCAB)} tokens$"
    ):
        FILL_MASK.encode(text_model(), FillMaskQuery(("[MASK]",), top_k=len(VOCAB) + 1))


def test_each_mask_returns_its_own_tokens() -> None:
    query = FillMaskQuery(("[MASK]甲[MASK]",), top_k=2)
    scores = np.asarray([[0.5, 0.25], [0.75, 0.125]], dtype=np.float32)
    output = Output(scores, np.asarray([[7, 8], [9, len(VOCAB)]], dtype=np.int32))
    [result] = FILL_MASK.decode(text_model(), query, FILL_MASK.encode(text_model(), query), [output])
    assert result.masks == (
        (TokenProbability("甲", 0.5), TokenProbability("乙", 0.25)),
        (TokenProbability("丙", 0.75), TokenProbability("", 0.125)),  # beyond the vocabulary: padded embeddings
    )
    assert (result.tokens, result.truncated) == (5, False)


def test_only_masked_lms_can_fill_masks() -> None:
    models = [text_model(), text_model(yes=None), head("a", "b"), text_model("encoder")]
    assert [FILL_MASK.can(model, FillMaskQuery(("[MASK]",))) for model in models] == [True, True, False, False]
