"""Estimates of memory, work and disk, against figures computed by hand for the 1.3B model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.checkpoints.shape import Shape
from service.tools.training.estimate import (
    Load,
    activations,
    choose_micro_batch,
    disk_bytes,
    flops,
    lora_parameters,
    memory,
    total_parameters,
)

LARGE = Shape(24, 2048, 8, 8192, 21248, 512, 2, 1e-12, "gelu_new")
FULL = Load(LARGE, "head", 32, 128, "bfloat16", total_parameters(LARGE, "head"))
GB = 1e9


def test_the_large_model_has_1_3_billion_parameters() -> None:
    assert total_parameters(LARGE, "head") == pytest.approx(1.26e9, rel=0.01)


@pytest.mark.parametrize(("rows", "length", "gigabytes"), [(32, 128, 7.3), (8, 128, 1.8), (32, 512, 35)])
def test_activations_are_those_of_the_formula(rows: int, length: int, gigabytes: float) -> None:
    assert activations(replace(FULL, micro_batch=rows, length=length)) / GB == pytest.approx(gigabytes, rel=0.03)


def test_checkpointed_activations_are_a_tenth() -> None:
    assert activations(replace(FULL, use_checkpointing=True)) / GB == pytest.approx(0.7, rel=0.05)


def test_float32_activations_take_twice_as_much() -> None:
    assert activations(replace(FULL, precision="float32")) == 2 * activations(FULL)


def test_full_training_needs_about_30_gigabytes() -> None:
    assert memory(FULL).total / GB == pytest.approx(30.5, rel=0.03)


def test_lora_needs_less_states_and_disk() -> None:
    adapted = replace(FULL, num_trained=lora_parameters(LARGE, 8))
    saved = disk_bytes(adapted.num_parameters, adapted.num_trained, saves_adapter=True)
    assert saved < disk_bytes(adapted.num_parameters, adapted.num_trained) / 5
    assert memory(adapted).states < 0.01 * memory(FULL).states
    assert disk_bytes(FULL.num_parameters, adapted.num_trained) < 0.15 * disk_bytes(
        FULL.num_parameters, FULL.num_trained
    )


def test_the_micro_batch_divides_the_step_and_fits() -> None:
    assert choose_micro_batch(FULL, 32, 1, int(80e9)) == 32
    assert choose_micro_batch(FULL, 32, 1, int(28e9)) == 8
    assert choose_micro_batch(FULL, 32, 2, int(80e9)) == 16
    assert choose_micro_batch(FULL, 32, 1, int(16e9)) is None


def test_work_is_six_operations_a_parameter_and_token_and_eight_with_checkpointing() -> None:
    layers = 24 * (4 * 2048**2 + 2 * 2048 * 8192)
    assert flops(FULL, 32) == pytest.approx(6 * layers * 128 * 32, rel=0.02)
    assert flops(replace(FULL, use_checkpointing=True), 32) == pytest.approx(flops(FULL, 32) * 8 / 6)
