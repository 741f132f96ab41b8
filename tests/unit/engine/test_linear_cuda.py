"""Linear maps for GPUs, tested on a CPU: torch has the same products there and runs compiled functions eagerly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

from service.checkpoints.checkpoint import describe
from service.domain import Quantization
from service.engine import ops, torch_private
from service.engine.device import DTYPES, check_capability
from service.engine.engine import Engine
from service.engine.linear import Cuda, CudaFp8, CudaInt8, Linear, choose
from service.engine.ops import Gelu, Norm, quantize_channels, quantize_signed
from service.errors import SettingError
from tests.checkpoints import make_checkpoint
from tests.unit.engine.rows import mean_rows

GPU = torch.device("cuda", 0)
SIZES = (
    (8, 16, 32),
    (16, 32, 16),
    (24, 48, 64),
    (136, 64, 48),
)  # tokens, out, in: below and above the minimum of _int_mm
KINDS = {"none": (Cuda.of, 1e-6), "int8": (CudaInt8.of, 0.02), "fp8": (CudaFp8.of, 0.06)}


def random(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(sum(sizes))).to(dtype)


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize(("tokens", "num_out", "num_in"), SIZES)
@pytest.mark.parametrize("gelu", ["none", "tanh"])
@pytest.mark.parametrize("kind", KINDS)
def test_maps_are_close_to_exact(
    kind: str, gelu: Gelu, tokens: int, num_out: int, num_in: int, dtype: torch.dtype
) -> None:
    make, limit = KINDS[kind]
    limit = max(limit, 0.01 if dtype == torch.bfloat16 else 0.0)
    weight, bias = random(num_out, num_in, dtype=dtype), random(num_out, dtype=dtype)
    hidden, residual = random(tokens, num_in, dtype=dtype), random(tokens, num_out, dtype=dtype)
    norm = Norm(torch.full_like(bias, 2.0), torch.ones_like(bias), 1e-12)
    exact = F.linear(hidden.double(), weight.double(), bias.double())
    made: Linear = make(weight, bias)
    added, normed = made.add_norm(hidden, residual, norm)
    outs = (made(hidden), made.gelu(hidden, gelu), added, normed)
    assert {out.dtype for out in outs} == {dtype}
    assert {out.shape for out in outs} == {(tokens, num_out)}
    assert relative_error(outs[0], exact) < limit
    assert relative_error(outs[1], F.gelu(exact, approximate=gelu)) < 1.5 * limit
    assert relative_error(added, exact + residual) < limit
    assert relative_error(normed, F.layer_norm(exact + residual, (num_out,)) * 2 + 1) < 1.5 * limit
    assert torch.equal(hidden, random(tokens, num_in, dtype=dtype))
    assert torch.equal(residual, random(tokens, num_out, dtype=dtype))


@pytest.mark.parametrize(("dtype", "step"), [(torch.int8, 1 / 254), (torch.float8_e4m3fn, 1 / 16)])
def test_codes_are_close_to_exact_and_use_the_whole_range(dtype: torch.dtype, step: float) -> None:
    hidden = torch.cat([random(6, 32) * 1000, random(3, 32) / 1000, torch.zeros(1, 32)])
    channel_codes, channel_scales = quantize_channels(hidden, dtype)
    codes, scales = quantize_signed(hidden, dtype)
    assert torch.equal(codes.float(), channel_codes.float())
    assert torch.allclose(scales[:, 0], channel_scales)
    assert codes.float().abs().amax(1).tolist() == [127.0 if dtype == torch.int8 else 448.0] * 9 + [0.0]
    error = (codes.float() * scales - hidden).abs()
    bound = hidden.abs().amax(1, keepdim=True) if dtype == torch.int8 else hidden.abs() + scales
    assert (error <= 1.01 * step * bound).all()


def test_the_output_of_a_token_does_not_depend_on_the_other_tokens() -> None:
    hidden, weight, bias = random(24, 32), random(16, 32), random(16)
    for make, _ in KINDS.values():
        made: Linear = make(weight, bias)
        torch.testing.assert_close(made(hidden)[:8], made(hidden[:8]), atol=1e-6, rtol=0)


def test_a_product_of_float8_has_a_multiple_of_16_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def multiply(codes: torch.Tensor, *others: Any) -> torch.Tensor:
        rows.append(len(codes))
        return scaled_mm(codes, *others)

    rows: list[int] = []
    scaled_mm = torch_private.scaled_mm
    monkeypatch.setattr("service.engine.torch_private.scaled_mm", multiply)
    made = CudaFp8.of(random(16, 32), random(16))
    assert [len(made(random(tokens, 32))) for tokens in (8, 16, 24, 136)] == [8, 16, 24, 136]
    assert rows == [16, 16, 32, 144]


def test_fused_compiles_only_for_tensors_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu:
        is_cuda = True

    def fake_compile(function: Callable[..., object], recompile_limit: int) -> Callable[..., object]:
        compiled.append(function)
        return lambda *args: "compiled"

    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", fake_compile)
    monkeypatch.setattr("service.engine.torch_private.mark_static", lambda tensor, dimension: None)
    called = ops.Fused(lambda first: "as written")
    assert [called(torch.ones(1)), called(OnGpu()), called(OnGpu())] == ["as written", "compiled", "compiled"]
    assert len(compiled) == 1


@pytest.mark.parametrize(
    ("quantization", "capability", "least"),
    [("int8", (7, 5), "8.0"), ("fp8", (8, 0), "8.9"), ("fp8", (8, 6), "8.9")],
)
def test_a_gpu_below_the_compute_capability_is_refused(
    monkeypatch: pytest.MonkeyPatch, quantization: Quantization, capability: tuple[int, int], least: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found = ".".join(map(str, capability))
    with pytest.raises(SettingError, match=f"needs compute capability {least}, and cuda:0 has {found}"):
        check_capability(quantization, GPU)


@pytest.mark.parametrize(
    ("quantization", "capability"), [("none", (7, 0)), ("int8", (8, 0)), ("fp8", (8, 9)), ("fp8", (9, 0))]
)
def test_a_gpu_with_the_compute_capability_is_accepted(
    monkeypatch: pytest.MonkeyPatch, quantization: Quantization, capability: tuple[int, int]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    check_capability(quantization, GPU)


@pytest.mark.parametrize(("quantization", "kind"), [("none", Cuda), ("int8", CudaInt8), ("fp8", CudaFp8)])
@pytest.mark.parametrize("family", ["megatron-bert", "bert"])
def test_embeddings_of_a_model_with_gpu_maps_have_a_cosine_near_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quantization: Quantization, kind: type, family: str
) -> None:
    checkpoint = describe(make_checkpoint(tmp_path, family=family), "test")
    exact = Engine.load(checkpoint, precision="float32").run(mean_rows())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    make = choose(GPU, torch.float32, quantization)
    monkeypatch.setattr("service.engine.linear.choose", lambda *of: make)
    engine = Engine.load(checkpoint, precision="float32", quantization=quantization)
    assert isinstance(engine.weights.layers[0].qkv, kind)
    for one, other in zip(exact, engine.run(mean_rows()), strict=True):
        a, b = one.scores[0], other.scores[0]
        assert float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) > 0.99
