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
from service.engine.linear import Linear, Plain
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
"""Largest distances from the reference. Rounding gives a third of them at most."""


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
    """Compares the maps, alone, with GELU and with residual and norm, with the same in float32 on the CPU."""
    dtype, gelu = DTYPES[each.precision], gelu_of(shape)

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for num_out, num_in in _widths(shape, device):
            weight, bias = (numbers(num_out, num_in) / math.sqrt(num_in)).to(dtype), numbers(num_out).to(dtype)
            gain, shift = torch.full_like(bias, 2.0), torch.ones_like(bias)
            with device_guard(device):
                made = each.linear_class.of(weight.to(device, copy=True), bias.to(device, copy=True))
            norm = Norm(gain.to(device), shift.to(device), shape.norm_eps)
            for num_tokens in NUM_CPU_TOKENS if device.type == "cpu" else NUM_TOKENS:
                hidden, residual = (
                    numbers(num_tokens, num_in).to(dtype),
                    numbers(num_tokens, num_out, 1)[..., 0].to(dtype),
                )
                exact = F.linear(hidden.float(), weight.float(), bias.float())
                total = exact + residual.float()
                given, added = hidden.to(device), residual.to(device)
                with device_guard(device):
                    sums, normed = made.add_norm(given, added, norm)
                    computed = made(given), made.gelu(given, gelu), sums, normed
                known = exact, F.gelu(exact, approximate=gelu), total, F.layer_norm(total, (num_out,)) * 2 + 1
                yield from zip(computed, known, strict=True)

    limit = PRECISION_LIMITS[each.precision] if each.quantization == "none" else LIMITS[each.quantization]
    return compare("linear", each.name, pairs, limit)


def _widths(shape: Shape, device: torch.device) -> list[tuple[int, int]]:
    """Output and input widths of the maps of a layer, each once."""
    hidden, ffn = shape.hidden_size, shape.ffn_size
    maps = [(3 * hidden, hidden), (hidden, hidden), (ffn, hidden), (hidden, ffn)]
    if device.type == "cpu":
        maps = [(min(num_out, MAX_CPU_OUT), num_in) for num_out, num_in in maps]
    return list(dict.fromkeys(maps))


def can_compile(device: torch.device) -> bool:
    return device.type == "cuda"
