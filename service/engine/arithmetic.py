"""The arithmetic of a model's linear maps: the class, precision and quantization that are wanted, or the next best ones
that pass the self-test on this device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from service.checkpoints.checkpoint import Shape
from service.domain import Check, Quantization
from service.engine import linear
from service.engine.device import DTYPES, device_guard
from service.engine.encoder import gelu_of
from service.engine.linear import InputRange, Linear, Plain
from service.engine.ops import Norm
from service.engine.self_test import compare, numbers
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


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How the linear maps are computed, and what the self-test found of it and of what was tried before."""

    precision: str
    quantization: Quantization
    linear_class: type[Linear]
    checks: tuple[Check, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.linear_class.__name__} {self.precision}"


def choose(shape: Shape, device: torch.device, precision: str, quantization: Quantization) -> Arithmetic:
    """The first that passes: as wanted, without quantization, with torch's own linear, in float32.

    Raises SettingError when the device does not support the quantization, or when none passes.
    """
    checks: list[Check] = []
    for each in _candidates(device, precision, quantization):
        found = _check_with_compiled(each, shape, device)
        checks += found
        if found[-1].is_sound:
            return replace(each, checks=tuple(checks))
    last = checks[-1]
    raise SettingError(f"{device} computes wrong numbers, also in {last.name}: {last.reason}; replace the device")


def _candidates(device: torch.device, precision: str, quantization: Quantization) -> list[Arithmetic]:
    wanted = [(precision, quantization), (precision, "none"), ("float32", "none")]
    out: list[Arithmetic] = []
    for each, quantized in dict.fromkeys(wanted):
        chosen = linear.choose(device, DTYPES[each], quantized)
        out.append(Arithmetic(each, quantized, chosen))
        if quantized == "none" and chosen is not Plain:
            out.append(Arithmetic(each, quantized, Plain))
    return out


def _check_with_compiled(each: Arithmetic, shape: Shape, device: torch.device) -> list[Check]:
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

    limit = PRECISION_LIMITS[each.precision] if each.quantization == "none" else LIMITS[each.quantization]
    return compare("linear", each.name, pairs, limit)


def _maps(shape: Shape, device: torch.device) -> dict[tuple[int, int], set[str]]:
    """How the encoder calls its maps, by their output and input width: others would be compiled for nothing."""
    hidden, ffn = shape.hidden_size, shape.ffn_size
    layer = [
        (3 * hidden, hidden, "alone"),
        (hidden, hidden, "add_norm"),
        (ffn, hidden, "gelu"),
        (hidden, ffn, "add_norm"),
    ]
    maps: dict[tuple[int, int], set[str]] = {}
    for num_out, num_in, call in layer:
        width = min(num_out, MAX_CPU_OUT) if device.type == "cpu" else num_out
        maps.setdefault((width, num_in), set()).add(call)
    return maps


def can_compile(device: torch.device) -> bool:
    return device.type == "cuda"
