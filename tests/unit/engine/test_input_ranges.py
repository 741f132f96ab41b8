"""The ranges of inputs on known rows, and maps with fixed scales that are made from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from service.checkpoints.checkpoint import Checkpoint, describe
from service.domain import Encoding
from service.engine.engine import Engine
from service.engine.input_ranges import measure_ranges, random_rows
from service.engine.linear import OneDnnInt8, Plain
from service.engine.weights import MAPS, WeightFormat, Weights, read_weights
from service.errors import CheckpointError
from tests.checkpoints import make_checkpoint
from tests.unit.engine.rows import mean_rows

CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return describe(make_checkpoint(tmp_path / "model", num_layers=2), "test")


def read(checkpoint: Checkpoint) -> Weights:
    return read_weights(checkpoint, WeightFormat(CPU, torch.float32, Plain), lambda done, total: None)[0]


def test_every_map_of_the_encoder_has_a_range_for_each_of_its_inputs(checkpoint: Checkpoint) -> None:
    shape, weights = checkpoint.shape, read(checkpoint)
    found = measure_ranges(weights, shape, mean_rows())
    assert set(found) == {f"encoder.layer.{index}.{name}" for index in range(2) for name in MAPS.values()}
    assert found["encoder.layer.0.output.dense"].low.shape == (shape.ffn_size,)
    assert found["encoder.layer.0.attention.self.qkv"].high.shape == (shape.hidden_size,)


def test_the_range_of_more_rows_holds_that_of_fewer(checkpoint: Checkpoint) -> None:
    weights, rows = read(checkpoint), mean_rows()
    few, all_rows = (measure_ranges(weights, checkpoint.shape, some) for some in (rows[:2], rows))
    for name, narrow in few.items():
        assert bool((all_rows[name].low <= narrow.low + 1e-4).all())
        assert bool((all_rows[name].high >= narrow.high - 1e-4).all())


def test_random_rows_fit_into_a_model_of_few_positions(checkpoint: Checkpoint) -> None:
    rows = random_rows(checkpoint.shape)
    assert max(row.num_tokens for row in rows) <= checkpoint.shape.max_positions
    assert {1, 2} <= {row.num_tokens for row in rows}


def test_int8_takes_its_scales_from_the_rows_it_is_given(checkpoint: Checkpoint) -> None:
    def gain(rows: list[Encoding]) -> torch.Tensor:
        engine = Engine.load(checkpoint, precision="float32", quantization="int8", sample_rows=lambda: rows)
        made = engine.weights.layers[0].ffn_out
        assert isinstance(made, OneDnnInt8)
        return made.gain

    rows = mean_rows()
    assert torch.equal(gain(rows), gain(rows))
    assert not torch.equal(gain(rows), gain(rows[:1]))


def test_scales_are_measured_once_and_kept_with_the_weights(checkpoint: Checkpoint, tmp_path: Path) -> None:
    measured: list[int] = []

    def sample_rows() -> list[Encoding]:
        measured.append(1)
        return mean_rows()

    first, second = (
        Engine.load(
            checkpoint,
            precision="float32",
            quantization="int8",
            weight_cache=tmp_path / "cache",
            sample_rows=sample_rows,
        ).run(mean_rows())
        for _ in range(2)
    )
    assert measured == [1]
    assert [row.scores.tolist() for row in first] == [row.scores.tolist() for row in second]


def test_no_rows_are_made_for_maps_without_fixed_scales(checkpoint: Checkpoint) -> None:
    def sample_rows() -> list[Encoding]:
        raise CheckpointError("no tokenizer")

    Engine.load(checkpoint, precision="float32", sample_rows=sample_rows)
