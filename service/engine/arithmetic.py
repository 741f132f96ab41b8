"""The arithmetic of a model's layers: the runtime, precision and quantization that are wanted, or the next best ones
that pass the self-test on this device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, get_args, runtime_checkable

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from service.checkpoints.shape import Shape
from service.domain import Check, Quantization, Runtime, WantedQuantization, WantedRuntime
from service.engine import linear
from service.engine.attention_backends import Prepare, prepare_plain
from service.engine.device import DTYPES, device_guard
from service.engine.encoder import encode, gelu_of
from service.engine.input_ranges import measure_ranges, random_rows
from service.engine.linear import InputRange, Int8Codes, Linear, Plain
from service.engine.ops import Norm
from service.engine.packing import Layout
from service.engine.readouts import Shared
from service.engine.sample_layer import make_sample, sample_shape, sample_tokens
from service.engine.self_test import CPU, LAYOUTS, compare, numbers
from service.engine.weights import Weights
from service.errors import SettingError

NUM_TOKENS = (8, 136)
NUM_CPU_TOKENS = (8, 40)
"""Products of few and of more tokens take different kernels."""

MAX_CPU_OUT = 64
"""The most output channels of a map that is checked on a CPU: the start should not wait for full maps. Each channel is
summed on its own, and the number of inputs is that of the model."""

LIMITS: dict[Quantization, float] = {"int8": 0.1, "fp8": 0.15}
PRECISION_LIMITS = {"float32": 1e-3, "bfloat16": 0.03}
"""Largest distances from the reference. Rounding gives less than half of them."""


MAX_ONNX_BYTES = 1 << 31
"""Of the maps' weights: `auto` takes ONNX Runtime up to this size. Each worker process has a copy of its own of them,
where those of torch are mapped from one file."""


class Compute(Protocol):
    def __call__(self, tokens: Tensor, layout: Layout, selected: Tensor | None, /) -> Tensor:
        """From ids, segment ids and positions [3, tokens], their rows and the selected tokens, to their final hidden
        states [at least selected tokens, hidden]. None selects all."""
        ...


@runtime_checkable
class ComputesReadouts(Compute, Protocol):
    """An encoder that can do more."""

    def read(self, tokens: Tensor, layout: Layout, selected: Tensor | None, readout: Shared) -> Tensor:
        """What is read from hidden states: [selected tokens, labels or token ids], or a mean [1, hidden]."""
        ...


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How the layers are computed, and what the self-test found of it and of what was tried before."""

    runtime: Runtime
    precision: str
    quantization: Quantization
    linear_class: type[Linear]
    times: tuple[tuple[str, float], ...] = ()
    """The forms that it was chosen from by measurement, and the seconds of each."""
    checks: tuple[Check, ...] = ()

    @property
    def name(self) -> str:
        """Of the maps, of which there may be several kinds in one precision."""
        return f"{self.linear_class.__name__} {self.precision}"

    @property
    def result(self) -> str:
        """The precision, or the quantization where there is one: what decides how exact the results are."""
        return self.precision if self.quantization == "none" else self.quantization

    @property
    def short_name(self) -> str:
        """Names the arithmetic among those that a device has."""
        return f"{self.runtime} {self.result}"

    def bind(self, weights: Weights, shape: Shape, prepare: Prepare) -> Compute:
        """The encoder with these weights. `prepare` is the attention backend of torch; ONNX Runtime has its own."""
        if self.runtime == "onnxruntime":
            from service.engine.onnx_encoder import OnnxEncoder  # takes 0.15 s, for a CPU only

            return OnnxEncoder(weights, shape, torch.get_num_threads())

        def compute(tokens: Tensor, layout: Layout, selected: Tensor | None) -> Tensor:
            attend = prepare(layout, tokens.device, weights.words.dtype)
            return encode(weights, shape, tokens, attend, selected)

        return compute


def candidates(
    shape: Shape, device: torch.device, precision: str, runtime: WantedRuntime, quantization: WantedQuantization
) -> list[Arithmetic]:
    """All that the settings leave to choose between.

    Raises SettingError when the device does not support what they name.
    """
    quantizations: tuple[Quantization, ...] = get_args(Quantization) if quantization == "auto" else (quantization,)
    found: list[Arithmetic] = []
    for each in quantizations:
        try:
            if runtime != "onnxruntime":
                found.append(of_torch(device, precision, each))
            if runtime == "onnxruntime" or (runtime == "auto" and _suits_onnx(shape, device, precision, each)):
                found.append(_of_onnx(device, precision, each))
        except SettingError:
            if quantization != "auto" or each == "none":  # a device may lack a quantization, and must have none
                raise
    return found


def of_torch(device: torch.device, precision: str, quantization: Quantization) -> Arithmetic:
    """Raises SettingError when the device does not support the quantization."""
    linear_class = linear.choose(device, DTYPES[precision], quantization)
    return Arithmetic("torch", precision, quantization, linear_class)


def _of_onnx(device: torch.device, precision: str, quantization: Quantization) -> Arithmetic:
    if not _has_onnx(device, precision, quantization):
        raise SettingError(
            f"runtime 'onnxruntime': computes on a CPU, in float32 and int8; not in {precision} with quantization "
            f"{quantization} on {device}; take --runtime auto, or --precision float32"
        )
    return Arithmetic("onnxruntime", precision, quantization, _ONNX_CLASSES[quantization])


_ONNX_CLASSES: dict[Quantization, type[Linear]] = {"none": Plain, "int8": Int8Codes}
"""The maps that `onnx_encoder` makes nodes of."""


def _has_onnx(device: torch.device, precision: str, quantization: Quantization) -> bool:
    return device.type == "cpu" and precision == "float32" and quantization in _ONNX_CLASSES


def _suits_onnx(shape: Shape, device: torch.device, precision: str, quantization: Quantization) -> bool:
    num_bytes = shape.num_layers * shape.num_layer_weights * (4 if quantization == "none" else 1)
    return _has_onnx(device, precision, quantization) and num_bytes <= MAX_ONNX_BYTES


def check(wanted: Arithmetic, shape: Shape, device: torch.device) -> Arithmetic:
    """The first that passes: as wanted, by torch, without quantization, with torch's own linear, in float32.

    Raises SettingError when none passes.
    """
    checks: list[Check] = []
    for each in _next_best(wanted, device):
        found = [check_onnx(each, shape)] if each.runtime == "onnxruntime" else _check_linear(each, shape, device)
        checks += found
        if found[-1].is_sound:
            return replace(each, times=wanted.times, checks=tuple(checks))
    last = checks[-1]
    raise SettingError(f"{device} computes wrong numbers, also in {last.name}: {last.reason}; replace the device")


def _next_best(wanted: Arithmetic, device: torch.device) -> Iterator[Arithmetic]:
    if wanted.runtime != "torch":
        yield wanted
    precision = wanted.precision
    steps: list[tuple[str, Quantization]] = [(precision, wanted.quantization), (precision, "none"), ("float32", "none")]
    for each, quantized in dict.fromkeys(steps):
        by_torch = of_torch(device, each, quantized)
        yield by_torch
        if quantized == "none" and by_torch.linear_class is not Plain:
            yield replace(by_torch, linear_class=Plain)


def check_onnx(each: Arithmetic, shape: Shape) -> Check:
    """Compares a layer of ONNX Runtime with the same in float32 by torch."""

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        exact = make_sample(shape, numbers, lambda name, weight, bias: Plain(weight, bias))
        sample = sample_shape(shape)
        ranges = measure_ranges(exact, sample, random_rows(sample)) if each.linear_class.has_fixed_scales else {}
        made = make_sample(
            shape, numbers, lambda name, weight, bias: each.linear_class.of(weight, bias, ranges.get(name))
        )
        compute = each.bind(made, sample, prepare_plain)
        plain, masked = (LAYOUTS[0].rows[index] for index in (3, -1))  # a single row is attended to by other nodes
        for layout in (LAYOUTS[0], *(Layout((row,), row[0]) for row in (plain, masked))):
            tokens = sample_tokens(sample, layout)
            wanted = encode(exact, sample, tokens, prepare_plain(layout, CPU, torch.float32))[: layout.offsets[-1]]
            for selected in (None, torch.arange(0, len(wanted), 3, dtype=torch.int32)):
                yield compute(tokens, layout, selected), wanted if selected is None else wanted[selected]

    return compare("runtime", each.short_name, pairs, _limit(each))


def _limit(each: Arithmetic) -> float:
    return PRECISION_LIMITS[each.precision] if each.quantization == "none" else LIMITS[each.quantization]


def _check_linear(each: Arithmetic, shape: Shape, device: torch.device) -> list[Check]:
    """The check of these maps, last. If they pass without one compiled function, or without all, these are left out."""
    check = check_linear(each, shape, device)
    compiled = [function for function in each.linear_class.compiled if not function.is_left_out]
    if check.is_sound or not can_compile(device):
        return [check]
    for group in (*([function] for function in compiled), compiled):
        for function in group:
            function.is_left_out = True
        again = check_linear(each, shape, device)
        if again.is_sound:
            left_out = [Check("compiled", function.name, check.distance, 0.0, check.reason) for function in group]
            return [*left_out, again]
        for function in group:
            function.is_left_out = False
    return [check]


def check_linear(each: Arithmetic, shape: Shape, device: torch.device) -> Check:
    """Compares the maps, as the encoder calls them, with the same in float32 on the CPU."""
    dtype, gelu = DTYPES[each.precision], gelu_of(shape)

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for (num_out, num_in), calls in _maps(shape, device).items():
            weight, bias = (numbers(num_out, num_in) / math.sqrt(num_in)).to(dtype), numbers(num_out).to(dtype)
            known = InputRange.of(numbers(max(NUM_TOKENS), num_in))
            with device_guard(device):
                made = each.linear_class.of(weight.to(device, copy=True), bias.to(device, copy=True), known)
            gain, shift = torch.full_like(bias, 2.0).to(device), torch.ones_like(bias).to(device)
            norm = Norm(gain, shift, shape.norm_eps)
            for num_tokens in NUM_CPU_TOKENS if device.type == "cpu" else NUM_TOKENS:
                hidden, residual = numbers(num_tokens, num_in).to(dtype), numbers(num_tokens, num_out).to(dtype)
                given, added = hidden.to(device), residual.to(device)
                exact = F.linear(hidden.float(), weight.float(), bias.float())
                with device_guard(device):
                    if "alone" in calls:
                        yield made(given), exact
                    if "gelu" in calls:
                        yield made.gelu(given, gelu), F.gelu(exact, approximate=gelu)
                    if "add_norm" in calls:
                        sums, normed = made.add_norm(given, added, norm)
                        total = exact + residual.float()
                        yield sums, total
                        yield normed, F.layer_norm(total, (num_out,)) * 2 + 1

    return compare("linear", each.name, pairs, _limit(each))


def _maps(shape: Shape, device: torch.device) -> dict[tuple[int, int], set[str]]:
    """How the encoder calls its maps, by their output and input width: others would be compiled for nothing."""
    maps: dict[tuple[int, int], set[str]] = {}
    for field, (num_out, num_in) in shape.maps.items():
        call = {"qkv": "alone", "ffn_in": "gelu"}.get(field, "add_norm")
        width = min(num_out, MAX_CPU_OUT) if device.type == "cpu" else num_out
        maps.setdefault((width, num_in), set()).add(call)
    return maps


def can_compile(device: torch.device) -> bool:
    return device.type == "cuda"
