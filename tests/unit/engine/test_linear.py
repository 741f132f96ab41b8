"""Linear maps for CPUs: parity of every kind with the plain one, quantisation, and reuse of loaded memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

from service.checkpoints.checkpoint import Checkpoint, describe
from service.domain import Mean
from service.engine import linear
from service.engine.device import DTYPES, int8_weight_limit
from service.engine.engine import Engine
from service.engine.linear import InputRange, Int8Codes, Linear, OneDnn, OneDnnInt8, Plain, choose
from service.engine.ops import Gelu, Norm, quantize_channels, to_unsigned_codes
from service.engine.packing import bucket
from service.engine.weights import WeightFormat, Weights, read_weights
from service.errors import SettingError
from tests.checkpoints import make_checkpoint
from tests.unit.engine.rows import mean_rows

CPU = torch.device("cpu")
SIZES = ((1, 8, 16), (7, 24, 8), (130, 64, 48))
INT8 = (OneDnnInt8, Int8Codes)

in_each_int8 = pytest.mark.parametrize("linear_class", INT8)


def make_plain(num_out: int, num_in: int, dtype: torch.dtype = torch.float32) -> Plain:
    generator = torch.Generator().manual_seed(num_out)
    weight = torch.randn(num_out, num_in, generator=generator) / num_in**0.5
    return Plain(weight.to(dtype), torch.randn(num_out, generator=generator).to(dtype))


def make_norm(size: int, dtype: torch.dtype = torch.float32) -> Norm:
    return Norm(torch.full((size,), 2.0, dtype=dtype), torch.ones(size, dtype=dtype), 1e-12)


def random(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(7)).to(dtype)


def up_to(limit: float, num_in: int) -> InputRange:
    return InputRange(torch.full((num_in,), -limit), torch.full((num_in,), limit))


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize(("tokens", "num_out", "num_in"), SIZES)
@pytest.mark.parametrize("gelu", ["none", "tanh"])
@pytest.mark.parametrize("fuses", [True, False], ids=["fused", "apart"])
def test_onednn_matches_plain(
    tokens: int, num_out: int, num_in: int, gelu: Gelu, fuses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "FUSES", fuses)
    plain = make_plain(num_out, num_in)
    packed = OneDnn.of(plain.weight, plain.bias)
    hidden, residual = random(tokens, num_in), random(tokens, num_out)
    torch.testing.assert_close(packed(hidden), plain(hidden), atol=1e-5, rtol=0)
    torch.testing.assert_close(packed.gelu(hidden, gelu), plain.gelu(hidden, gelu), atol=1e-5, rtol=0)
    added, normed = packed.add_norm(hidden, residual, make_norm(num_out))
    torch.testing.assert_close(added, plain(hidden) + residual, atol=1e-5, rtol=0)
    torch.testing.assert_close(normed, make_norm(num_out)(added), atol=1e-5, rtol=0)


@in_each_int8
@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize(("tokens", "num_out", "num_in"), SIZES)
def test_int8_is_close_to_exact(
    linear_class: type[Linear], tokens: int, num_out: int, num_in: int, dtype: torch.dtype
) -> None:
    plain = make_plain(num_out, num_in, dtype)
    hidden, residual = random(tokens, num_in, dtype=dtype), random(tokens, num_out, dtype=dtype)
    quantized = linear_class.of(plain.weight, plain.bias, InputRange.of(hidden))
    exact = F.linear(hidden.double(), plain.weight.double(), plain.bias.double())
    assert quantized(hidden).dtype == dtype
    assert relative_error(quantized(hidden), exact) < 0.02
    assert relative_error(quantized.gelu(hidden, "tanh"), F.gelu(exact, approximate="tanh")) < 0.03
    assert relative_error(quantized.add_norm(hidden, residual, make_norm(num_out, dtype))[0], exact + residual) < 0.02


@in_each_int8
@pytest.mark.parametrize(("num_in", "sign"), [(64, 1), (64, -1)])
def test_int8_sums_of_the_largest_codes_do_not_saturate(linear_class: type[Linear], num_in: int, sign: int) -> None:
    """Every input and weight has the largest code, so the sums of a CPU that accumulates in 16 bits are largest."""
    plain = Plain(torch.full((16, num_in), float(sign)), torch.zeros(16))
    quantized = linear_class.of(plain.weight, plain.bias, up_to(1.0, num_in))
    clipped = quantized(torch.full((8, num_in), 1e9))
    assert torch.allclose(clipped, torch.full((8, 16), 1.3 * sign * num_in), rtol=0.01)


@in_each_int8
def test_int8_of_inputs_of_one_sign_is_close_to_exact(linear_class: type[Linear]) -> None:
    """As after a GELU: the codes count from the middle of the range."""
    plain, hidden = make_plain(24, 64), random(50, 64).abs()
    quantized = linear_class.of(plain.weight, plain.bias, InputRange.of(hidden))
    assert relative_error(quantized(hidden), plain(hidden)) < 0.02


@in_each_int8
def test_int8_of_zeros_is_the_bias(linear_class: type[Linear]) -> None:
    plain = make_plain(24, 64)
    quantized = linear_class.of(plain.weight, plain.bias, InputRange(torch.full((64,), -0.2), torch.full((64,), 9.0)))
    assert torch.allclose(quantized(torch.zeros(3, 64)), plain.bias, atol=0.1)


@in_each_int8
def test_int8_keeps_the_other_channels_when_one_is_much_wider(linear_class: type[Linear]) -> None:
    plain, hidden = make_plain(24, 64), random(50, 64)
    hidden[:, 0] *= 40
    quantized = linear_class.of(plain.weight, plain.bias, InputRange.of(hidden))
    without = hidden.clone()
    without[:, 0] = 0
    assert relative_error(quantized(without), plain(without)) < 0.1


@in_each_int8
def test_int8_of_tokens_does_not_depend_on_the_other_tokens(linear_class: type[Linear]) -> None:
    plain, hidden = make_plain(24, 64), random(40, 64)
    quantized = linear_class.of(plain.weight, plain.bias, up_to(4.0, 64))
    assert torch.equal(quantized(hidden), torch.cat([quantized(row[None]) for row in hidden]))


@pytest.mark.parametrize(
    ("features", "limit"),
    [
        ({"sse2", "avx2", "fma"}, 63),
        ({"sse2", "avx2", "avx512f", "avx512bw"}, 63),
        ({"sse2", "avx2", "avx_vnni"}, 127),
        ({"sse2", "avx2", "avx512_vnni"}, 127),
        ({"sse2", "avx512f", "amx_int8"}, 127),
        ({"asimd", "asimddp"}, 127),
        (set(), 127),
    ],
)
def test_int8_weights_use_seven_bits_on_x86_without_vnni(
    monkeypatch: pytest.MonkeyPatch, features: set[str], limit: int
) -> None:
    monkeypatch.setattr("service.host.cpu_features", lambda: frozenset(features))
    assert int8_weight_limit() == limit
    codes, scales = quantize_channels(torch.tensor([[2.0, -2.0]]), largest=int8_weight_limit())
    assert codes.tolist() == [[limit, -limit]]
    assert torch.allclose(scales, torch.tensor([2.0 / limit]))


def test_choose_returns_plain_on_a_cpu_without_bfloat16_in_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engine.torch_private.has_onednn", lambda dtype: dtype == torch.float32)
    assert choose(CPU, torch.bfloat16, "none") is Plain
    assert choose(CPU, torch.float32, "none") is OneDnn


@in_each_int8
@pytest.mark.parametrize(("low", "high"), [(0.5, 9.0), (-9.0, -0.5)])
def test_int8_inputs_that_are_all_far_from_zero_have_a_zero_point(
    linear_class: type[Linear], low: float, high: float
) -> None:
    plain, hidden = make_plain(24, 64), torch.linspace(low, high, 50 * 64).view(50, 64)
    quantized = linear_class.of(plain.weight, plain.bias, InputRange(torch.full((64,), low), torch.full((64,), high)))
    assert relative_error(quantized(hidden), plain(hidden)) < 0.05


def test_the_zero_point_of_int8_codes_is_an_integer_in_a_byte() -> None:
    plain = make_plain(24, 64)
    for low, high in ((-0.2, 9.0), (1.0, 2.0), (-2.0, -1.0), (0.0, 0.0)):
        ranges = InputRange(torch.full((64,), low), torch.full((64,), high))
        offset = Int8Codes.of(plain.weight, plain.bias, ranges).offset
        assert offset.unique().numel() == 1
        assert float(offset[0]) == round(float(offset[0]))
        assert abs(float(offset[0])) < 128


@in_each_int8
def test_int8_maps_are_made_again_of_their_tensors(linear_class: type[Linear]) -> None:
    plain, hidden = make_plain(24, 64), random(5, 64)
    made = linear_class.of(plain.weight, plain.bias, InputRange.of(hidden))
    tensors = made.tensors()
    assert tuple(tensors) == linear_class.field_names()
    assert torch.equal(linear_class.from_tensors(tensors)(hidden), made(hidden))


def test_maps_do_not_modify_their_inputs() -> None:
    plain = make_plain(8, 16)
    for linear_class in (OneDnn, *INT8, Plain):
        hidden, residual = random(9, 16), random(9, 8)
        made = linear_class.of(plain.weight.clone(), plain.bias, up_to(4.0, 16))
        made.add_norm(hidden, residual, make_norm(8))
        assert torch.equal(hidden, random(9, 16))
        assert torch.equal(residual, random(9, 8))


def test_unsigned_codes_are_clipped_to_a_byte() -> None:
    codes = to_unsigned_codes(torch.tensor([[0.2, 1.0, -300.0], [90.0, 127.5, 1e30]]), torch.ones(3) * 2, torch.ones(3))
    assert codes.tolist() == [[1, 3, 0], [181, 255, 255]]
    assert codes.dtype == torch.uint8


def test_a_channel_of_zeros_quantizes_to_zeros() -> None:
    codes, scales = quantize_channels(torch.tensor([[0.0, 0.0], [3.0, -1.5]]))
    assert codes.tolist() == [[0, 0], [127, -64]]
    assert torch.isfinite(scales).all()


def read(checkpoint: Checkpoint, linear_class: type[Linear]) -> Weights:
    return read_weights(checkpoint, WeightFormat(CPU, torch.float32, linear_class), lambda done, total: None)[0]


def test_an_engine_of_int8_has_quantised_maps(tmp_path: Path) -> None:
    engine = Engine.load(describe(make_checkpoint(tmp_path), "test"), precision="float32", quantization="int8")
    for layer in engine.weights.layers:
        assert all(
            isinstance(made, OneDnnInt8) for made in (layer.qkv, layer.attention_out, layer.ffn_in, layer.ffn_out)
        )


def test_the_loading_buffer_is_reused_unless_a_map_keeps_it(tmp_path: Path) -> None:
    checkpoint = describe(make_checkpoint(tmp_path, num_layers=2), "test")
    loaded: list[torch.Tensor] = []

    class Copied(Plain):
        @classmethod
        def of(cls, weight: torch.Tensor, bias: torch.Tensor, inputs: InputRange | None = None) -> Self:
            loaded.append(weight)
            return cls(weight.clone(), bias)

    made, kept = (read(checkpoint, linear_class) for linear_class in (Copied, Plain))
    assert loaded[0] is loaded[4]
    for one, other in zip(made.layers, kept.layers, strict=True):
        assert torch.equal(one.qkv.weight, other.qkv.weight)
        assert torch.equal(one.ffn_out.weight, other.ffn_out.weight)


def test_a_quantised_engine_reports_its_quantization_as_precision(tmp_path: Path) -> None:
    engine = Engine.load(describe(make_checkpoint(tmp_path), "test"), precision="float32", quantization="int8")
    assert engine.precision == "int8"


@pytest.mark.parametrize("family", ["megatron-bert", "bert"])
def test_embeddings_of_a_quantised_model_have_a_cosine_near_one(tmp_path: Path, family: str) -> None:
    checkpoint = describe(make_checkpoint(tmp_path, family=family), "test")
    rows = [replace(row, readout=Mean()) for row in mean_rows()]
    exact = Engine.load(checkpoint, precision="float32").run(rows)
    near = Engine.load(checkpoint, precision="float32", quantization="int8").run(rows)
    for one, other in zip(exact, near, strict=True):
        a, b = one.scores[0], other.scores[0]
        assert float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) > 0.995


def test_an_unknown_quantization_is_refused() -> None:
    with pytest.raises(SettingError, match="quantization 'fp8'"):
        choose(CPU, torch.float32, "fp8")


def test_buckets_are_few_and_add_little_padding() -> None:
    assert [bucket(each) for each in (1, 8, 9, 100, 511, 513, 1025)] == [8, 8, 16, 104, 512, 528, 1056]
    assert all(0 <= bucket(each) - each <= max(7, each / 31) for each in range(1, 20_000))
    assert len({bucket(each) for each in range(1, 4097)}) < 170
