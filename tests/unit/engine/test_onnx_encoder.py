"""ONNX Runtime: 8-bit maps, rows of a batch, memory and faults.

The tests of parity compare its float32 with transformers' own classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from service.checkpoints.checkpoint import describe
from service.domain import Encoding, Labels, Output, Pooled, Readout, TokenScores
from service.engine import readouts
from service.engine.attention_backends import prepare_sdpa
from service.engine.encoder import encode
from service.engine.engine import Engine
from service.engine.input_ranges import measure_ranges
from service.engine.linear import Int8Codes, Plain
from service.engine.onnx_encoder import OnnxEncoder
from service.engine.packing import Layout, pack
from service.engine.self_test import CPU, distance
from service.engine.weights import WeightFormat, read_weights
from service.errors import OutOfMemory
from tests.checkpoints import Kind, make_checkpoint
from tests.unit.engine.rows import choice_row, mean_rows
from tests.unit.engine.test_device import memory_limit
from tests.unit.engine.test_self_test import Fault, each_fault, failing, not_a_number, one_wrong_column

ROWS: list[Encoding] = [*mean_rows((1, 5, 5, 17, 40, 90, 91, 200)), choice_row((2, 3), 9), choice_row((4, 4, 2), 30)]


def load(path: Path, **options: Any) -> Engine:
    return Engine.load(describe(path, "test"), precision="float32", runtime="onnxruntime", **options)


def scores(outputs: Sequence[Output]) -> list[np.ndarray]:
    return [output.scores for output in outputs]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("onnx"), num_layers=2)


# 8 bits


@pytest.mark.parametrize("family", ["megatron-bert", "bert"])
def test_int8_computes_what_the_maps_say(tmp_path: Path, family: str) -> None:
    """Gains that are multiplied into norms and values, and GELU by tanh, change nothing but the rounding of numbers
    that are about halfway."""
    checkpoint = describe(make_checkpoint(tmp_path, family=family, num_layers=2), "test")
    plain = WeightFormat(CPU, torch.float32, Plain)
    exact, _ = read_weights(checkpoint, plain, lambda done, total: None)
    ranges = measure_ranges(exact, checkpoint.shape, ROWS)
    weights, _ = read_weights(
        checkpoint, replace(plain, linear_class=Int8Codes, ranges=ranges), lambda done, total: None
    )
    encoder = OnnxEncoder(weights, checkpoint.shape, 1)
    for rows in (ROWS, ROWS[3:4], ROWS[-1:]):
        packed = pack(rows, CPU)
        tokens, end = packed.tokens, packed.offsets[-1]
        computed = encoder(tokens, packed.layout, None)
        with torch.inference_mode():
            attend = prepare_sdpa(packed.layout, CPU, torch.float32)
            by_torch = encode(weights, checkpoint.shape, tokens, attend)[:end]
            without = encode(exact, checkpoint.shape, tokens, attend)[:end]
        assert distance(computed, by_torch) < 0.02
        assert 0.001 < distance(computed, without) < 0.1


def test_the_scales_of_int8_are_kept_with_the_weights(path: Path, tmp_path: Path) -> None:
    first = load(path, quantization="int8", weight_cache=tmp_path)
    [file] = tmp_path.glob("*-int8-float32-onnxruntime-cpu-*")
    second = load(path, quantization="int8", weight_cache=tmp_path, sample_rows=lambda: pytest.fail("measured again"))
    assert all(map(np.array_equal, scores(first.run(ROWS)), scores(second.run(ROWS))))
    assert file.stat().st_size > 0


# rows of a batch


def test_a_row_does_not_depend_on_the_others(path: Path) -> None:
    engine = load(path)
    together = scores(engine.run(ROWS))
    for row, output in zip(ROWS, together, strict=True):
        [alone] = scores(engine.run([row]))
        np.testing.assert_allclose(output, alone, atol=1e-5)


@pytest.mark.parametrize("selected", [[0, 3, 4, 60], [5], [380], []])
def test_a_row_of_which_nothing_is_read_changes_no_other(path: Path, selected: list[int]) -> None:
    checkpoint = describe(path, "test")
    weights, _ = read_weights(checkpoint, WeightFormat(CPU, torch.float32, Plain), lambda done, total: None)
    encoder, packed = OnnxEncoder(weights, checkpoint.shape, 1), pack(ROWS, CPU)
    every = encoder(packed.tokens, packed.layout, None)
    some = encoder(packed.tokens, packed.layout, torch.tensor(selected, dtype=torch.int32))
    np.testing.assert_allclose(some, every[selected], atol=1e-5)


# readouts


@pytest.mark.parametrize(
    ("kind", "activation"),
    [("sequence-classification", "gelu"), ("masked-lm", "gelu"), ("masked-lm", "gelu_new")],
)
@pytest.mark.parametrize("is_mean", [False, True])
def test_readouts_of_the_graph_are_those_of_torch(
    tmp_path: Path, kind: Kind, activation: str, is_mean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(make_checkpoint(tmp_path, kind=kind, num_layers=2, activation=activation))
    head: Readout = Labels() if kind == "sequence-classification" else TokenScores((0, 2), (5, 9, 6))
    readout = Pooled(("mean",), num_skipped=2) if is_mean else head
    rows = [replace(row, readout=readout) for row in ROWS[1:]]
    if isinstance(readout, TokenScores):
        rows.append(replace(rows[3], readout=replace(readout, positions=())))
    batches = [rows, rows[:1], rows[-2:-1]]
    read, asked = OnnxEncoder.read, []
    monkeypatch.setattr(OnnxEncoder, "read", lambda self, *args: asked.append(args) or read(self, *args))
    by_graph = [score for batch in batches for score in scores(engine.run(batch))]
    assert len(asked) == (2 if is_mean else 3)
    monkeypatch.setattr(readouts, "shared_readout", lambda encodings: None)
    by_torch = [score for batch in batches for score in scores(engine.run(batch))]
    assert len(asked) == (2 if is_mean else 3), "the others are by torch"
    for one, other in zip(by_graph, by_torch, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("fault", [one_wrong_column, not_a_number, failing])
def test_wrong_readouts_are_replaced_by_those_of_torch(
    path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    expected = scores(load(path).run(ROWS[-2:]))
    sound = OnnxEncoder.read
    monkeypatch.setattr(OnnxEncoder, "read", lambda self, *args: fault(sound(self, *args)))
    engine = load(path)
    engine.warm_up()
    left_out = [(check.kind, check.name) for check in engine.checks if not check.is_sound]
    assert left_out == [("runtime", "onnxruntime readouts")]
    for one, other in zip(scores(engine.run(ROWS[-2:])), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


# memory


def test_the_maps_are_kept_once(path: Path) -> None:
    assert load(path).weights.layers == ()


def test_a_batch_without_memory_is_out_of_memory_and_the_next_one_is_computed(path: Path) -> None:
    engine = load(path)
    engine.warm_up()
    rows = mean_rows((64,) * 1200)  # with states of 20 MB and more, which no block that was freed before can hold
    expected = scores(engine.run(rows[:2]))
    with memory_limit(90 << 20), pytest.raises(OutOfMemory, match="ONNXRuntimeError"):
        engine.run(rows)
    assert all(map(np.array_equal, scores(engine.run(rows[:2])), expected))


def test_damaged_cached_weights_are_replaced(path: Path, tmp_path: Path) -> None:
    engine = load(path, quantization="int8", weight_cache=tmp_path)
    expected = scores(engine.run(ROWS))
    [file] = tmp_path.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-100] ^= 255
    file.write_bytes(content)
    assert engine.replace_damaged_weights()
    assert all(map(np.array_equal, scores(engine.run(ROWS)), expected))


# the self-test


def test_a_sound_runtime_is_checked_in_both_precisions(path: Path) -> None:
    for quantization, limit in (("none", 1e-3), ("int8", 0.1)):
        [check] = load(path, quantization=quantization).checks
        assert (check.kind, check.is_sound) == ("runtime", True)
        assert check.distance is not None
        assert check.distance < limit / 2.5


@each_fault
@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_wrong_runtime_is_replaced_by_torch(
    path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, quantization: str
) -> None:
    expected = scores(Engine.load(describe(path, "test"), precision="float32", quantization=quantization).run(ROWS))  # type: ignore[arg-type]
    sound = OnnxEncoder.__call__
    monkeypatch.setattr(OnnxEncoder, "__call__", lambda self, *args: fault(sound(self, *args)))
    engine = load(path, quantization=quantization)
    assert engine.arithmetic.runtime == "torch"
    assert [(check.kind, check.name) for check in engine.checks if not check.is_sound] == [
        ("runtime", f"onnxruntime {'float32' if quantization == 'none' else 'int8'}")
    ]
    assert all(map(np.array_equal, scores(engine.run(ROWS)), expected))


@pytest.mark.parametrize(("is_single", "is_plain"), [(True, True), (True, False), (False, False)])
def test_each_way_through_the_attention_is_checked(
    path: Path, monkeypatch: pytest.MonkeyPatch, is_single: bool, is_plain: bool
) -> None:
    sound = OnnxEncoder.__call__

    def wrong(self: OnnxEncoder, tokens: Tensor, layout: Layout, selected: Tensor | None) -> Tensor:
        num_rows = len(layout.rows)
        is_meant = (num_rows == 1, layout.num_plain == num_rows) == (is_single, is_plain)
        return sound(self, tokens, layout, selected) * (0.5 if is_meant else 1)

    monkeypatch.setattr(OnnxEncoder, "__call__", wrong)
    assert load(path).arithmetic.runtime == "torch"
