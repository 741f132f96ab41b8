"""Rows of known texts: alone, in pairs, and as choices where the model can choose."""

from __future__ import annotations

from service.tasks.sample_rows import OPTIONS, TEXTS, sample_rows
from tests.unit.tasks.models import head, text_model


def test_a_choice_model_gets_rows_of_texts_and_choices() -> None:
    model = text_model()
    rows = sample_rows(model)
    assert {len(row.blocks) for row in rows} == {0, *map(len, OPTIONS)}
    assert max(row.num_tokens for row in rows) <= model.max_length


def test_other_models_get_no_choices() -> None:
    rows = sample_rows(head("a", "b"))
    assert len(rows) > len(TEXTS)
    assert not any(row.blocks for row in rows)
