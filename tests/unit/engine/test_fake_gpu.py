"""The GPU's paths on fake tensors: devices and types of every operator, from the load to the outputs, without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from service.checkpoints.checkpoint import describe
from service.domain import Cls, Encoding, Mean, Quantization, TokenScores, TopTokens
from service.engine import attention_backends, engine, ops, trials
from service.engine.attention import BACKENDS
from service.engine.device import Call
from service.engine.engine import Engine
from service.engine.self_test import LAYOUTS
from tests.checkpoints import make_checkpoint
from tests.support.fake_gpu import GPU, Operations, fake_gpu, pretend_cuda
from tests.unit.engine.rows import choice_row, plain_row

BATCHES: dict[str, list[Encoding]] = {
    "plain": [plain_row(5, Cls()), plain_row(600 // 4, Mean()), plain_row(5, TopTokens((1, 2), 3))],
    "zero-shot": [choice_row((3, 3), 20), choice_row((2, 9, 4), 130)],
    "mixed": [choice_row((3, 3), 20), plain_row(40, Mean()), plain_row(7, TokenScores((1,), (5, 6)))],
}


BUCKETS = (32, 96)


class Replaying:
    """Stands in for CUDA's recorder: a replay runs the recorded call again."""

    def __call__(self, call: Call) -> Call:
        call()
        return call


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch, capability=(9, 0))
    monkeypatch.setattr(ops, "compiled", lambda function, **_: function)
    monkeypatch.setattr("service.engine.torch_private.mark_static", lambda tensor, dimension: None)
    monkeypatch.setattr(attention_backends, "_flex_kernel", lambda device_type: flex_shapes)
    monkeypatch.setattr(engine, "CudaRecorder", Replaying)
    monkeypatch.setattr(trials, "CudaRecorder", Replaying)
    monkeypatch.setattr(engine, "BUCKETS", BUCKETS)
    monkeypatch.setattr(engine, "_GPU_WARM_UP_LENGTHS", ((32,), (100, 64)))
    monkeypatch.setattr("service.engine.trials.NUM_TRIALS", 1)
    monkeypatch.setattr("service.engine.arithmetic.NUM_TOKENS", (8,))
    monkeypatch.setattr("service.engine.self_test.LAYOUTS", LAYOUTS[:1])
    monkeypatch.setattr("service.engine.attention.TYPICAL", LAYOUTS[0])


def flex_shapes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, block_mask: Any) -> torch.Tensor:
    """FlexAttention without its compiler, with the mask of every pair of tokens by the function that it compiles."""
    token = torch.arange(query.shape[2], device=query.device)
    is_seen = block_mask.mask_mod(token, token, token[:, None], token)
    assert block_mask.kv_indices.device == query.device
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=is_seen)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("fake"), num_layers=1)


def load(path: Path, **options: Any) -> Engine:
    return Engine.load(describe(path, "test"), device="cuda:0", **options)


def run(loaded: Engine, rows: list[Encoding], operations: Operations) -> None:
    """Runs a batch; `operations` are those of this batch afterwards. None is on the CPU, and none waits for the GPU."""
    operations.seen.clear()
    operations.reads.clear()
    assert len(loaded.run(rows)) == len(rows)
    assert operations.on_cpu() == set()
    assert operations.reads == []


@pytest.mark.parametrize(
    ("precision", "quantization", "linear_class", "operator", "dtypes"),
    [
        ("float32", "none", "Cuda", "linear", {torch.float32}),
        ("bfloat16", "none", "Cuda", "linear", {torch.bfloat16, torch.float32}),
        ("bfloat16", "int8", "CudaInt8", "_int_mm", {torch.int32}),
        ("float32", "int8", "CudaInt8", "_int_mm", {torch.int32}),
        ("bfloat16", "fp8", "CudaFp8", "_scaled_mm", {torch.bfloat16}),
        ("float32", "fp8", "CudaFp8", "_scaled_mm", {torch.bfloat16}),
    ],
)
def test_every_precision_loads_on_the_gpu_passes_its_self_test_and_computes_there(
    path: Path,
    precision: str,
    quantization: Quantization,
    linear_class: str,
    operator: str,
    dtypes: set[torch.dtype],
) -> None:
    with fake_gpu() as operations:
        loaded = load(path, precision=precision, quantization=quantization, backend="sdpa")
        assert [check.reason for check in loaded.checks] == ["", ""]
        layer = loaded.weights.layers[0]
        maps = (layer.qkv, layer.attention_out, layer.ffn_in, layer.ffn_out)
        tensors = [loaded.weights.words, loaded.weights.positions, layer.ffn_norm.weight]
        tensors += [tensor for each in maps for tensor in each.tensors().values()]
        assert {type(each).__name__ for each in maps} == {linear_class}
        assert {tensor.device for tensor in tensors} == {GPU}
        for rows in BATCHES.values():
            run(loaded, rows, operations)
            assert operations.types_of(operator) == dtypes
            assert operations.types_of("layer_norm") == {loaded.weights.words.dtype}


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_computes_every_batch_on_the_gpu_alone(path: Path, backend: str) -> None:
    with fake_gpu() as operations:
        loaded = load(path, precision="bfloat16", backend=backend)
        for rows in BATCHES.values():
            run(loaded, rows, operations)
    assert [check.reason for check in loaded.checks] == ["", ""]


@pytest.mark.parametrize(
    ("backend", "names"),
    [
        ("sdpa", ["dense 32", "dense 96"]),
        ("flex", ["dense 32", "dense 96", "flex 640"]),
        ("varlen+flex", ["dense 32", "dense 96", "flex 640", "varlen 640"]),
    ],
)
def test_batches_go_through_graphs_with_buffers_on_the_gpu(
    path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, names: list[str]
) -> None:
    monkeypatch.setattr(engine, "BUCKETS", (*BUCKETS, 640))
    with fake_gpu() as operations:
        loaded = load(path, precision="bfloat16", backend=backend)
        loaded.warm_up()
        for rows in (BATCHES["mixed"], BATCHES["plain"] * 4):
            run(loaded, rows, operations)
    graphs = [check for check in loaded.checks if check.kind == "graph"]
    assert [(check.name, check.reason) for check in graphs] == [(name, "") for name in names]


def test_auto_measures_the_backends_that_pass_and_chooses_one(path: Path) -> None:
    with fake_gpu():
        loaded = load(path)
    assert loaded.precision == "bfloat16"
    assert [check.reason for check in loaded.checks if not check.is_sound] == []
    assert [check.name for check in loaded.checks if check.kind == "attention"] == [
        "sdpa",
        "flex",
        "varlen",
        "varlen+flex",
    ]
    assert loaded.backend in BACKENDS


# what the fake GPU finds


def on_the_wrong_device(rows: torch.Tensor, blocks: torch.Tensor) -> Callable[..., torch.Tensor]:
    return lambda batch, head, query, key: rows.cpu()[query] == rows[key]


def test_a_tensor_on_the_wrong_device_is_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_backends, "flex_visible", on_the_wrong_device)
    with fake_gpu():
        loaded = load(path, precision="bfloat16")
    [left_out] = {check.reason.partition(":")[0] for check in loaded.checks if not check.is_sound}
    assert left_out == "FakeTensorDeviceMismatchError"


def test_a_weight_of_the_wrong_type_is_found(path: Path) -> None:
    with fake_gpu():
        loaded = load(path, precision="bfloat16", backend="sdpa")
        layer = loaded.weights.layers[0]
        wrong = replace(layer, qkv=replace(layer.qkv, weight=layer.qkv.weight.float()))  # type: ignore[type-var]
        loaded._use(replace(loaded.weights, layers=(wrong,)))
        with pytest.raises(AssertionError, match="linear of the types"):
            loaded.run(BATCHES["plain"])
