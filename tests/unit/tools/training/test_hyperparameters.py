"""Defaults by form, size and task, and flags out of range."""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import SettingError
from service.tools.training.hyperparameters import ALL_LAYERS, Hyperparameters, choose, size_of
from service.tools.training.recipe import Form

MINI, LARGE = 5_000_000, 1_300_000_000


def chosen(
    form: Form = "head", parameters: int = MINI, examples: int = 10_000, task: str = "tnews", **flags: Any
) -> Hyperparameters:
    return choose(form=form, task=task, num_parameters=parameters, num_examples=examples, flags=flags)


def test_the_rate_depends_on_form_and_size() -> None:
    assert chosen().learning_rate == 1e-3
    assert chosen("head", LARGE).learning_rate == 2e-5
    assert chosen("choice", LARGE).learning_rate == 2e-6


def test_a_published_task_changes_the_defaults_of_large_models_only() -> None:
    assert chosen("head", LARGE, task="clue/ocnli").learning_rate == 1e-6
    assert chosen("head", MINI, task="clue/ocnli").learning_rate == 1e-3


def test_small_data_gets_more_epochs() -> None:
    assert chosen(examples=160).epochs == 30
    assert chosen(examples=100_000).epochs == 10


def test_a_flag_wins_over_the_table() -> None:
    assert chosen(learning_rate=3e-4, epochs=2.0).learning_rate == 3e-4
    assert chosen(learning_rate=3e-4, epochs=2.0, examples=10).epochs == 2


def test_a_frozen_encoder_has_defaults_of_its_own() -> None:
    assert chosen("head", LARGE, freeze=ALL_LAYERS).learning_rate == 5e-4


@pytest.mark.parametrize(("name", "value"), [("weight_decay", -1.0), ("warmup", 1.5), ("dropout", 1.0), ("lora", 2000)])
def test_a_value_out_of_range_is_one_line_with_the_flag(name: str, value: float) -> None:
    with pytest.raises(SettingError, match=f"--{name.replace('_', '-')} {value}: input should be"):
        chosen(**{name: value})


def test_sizes() -> None:
    assert [size_of(number) for number in (MINI, 110_000_000, LARGE)] == ["tiny", "base", "large"]
