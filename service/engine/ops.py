"""Operations on each token alone: layer norm, quantization, and the kernels that are compiled for a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, ParamSpec, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from service.engine import torch_private

Gelu = Literal["none", "tanh"]
"""torch's names of the exact GELU and its approximation by tanh."""


@dataclass(frozen=True, slots=True)
class Norm:
    """The layer norm over the last dimension, [size]. torch sums in float32 in every precision."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, hidden: Tensor) -> Tensor:
        return F.layer_norm(hidden, self.weight.shape, self.weight, self.bias, self.eps)


_TANH_GELU_LINEAR = torch.tensor(2 * math.sqrt(2 / math.pi))
_TANH_GELU_CUBIC = 0.044715 * float(_TANH_GELU_LINEAR)


def gelu(numbers: Tensor, approximate: Gelu) -> Tensor:
    """The GELU of numbers that nothing else needs: it may overwrite them.

    In float32 on a CPU, torch's tanh takes three times as long as its sigmoid, of which it is 2 sigmoid(2x) - 1.
    """
    if approximate == "tanh" and numbers.dtype == torch.float32 and not numbers.is_cuda:
        slope = torch.addcmul(_TANH_GELU_LINEAR, numbers, numbers, value=_TANH_GELU_CUBIC)
        return numbers.mul_(slope.mul_(numbers).sigmoid_())
    return F.gelu(numbers, approximate=approximate)


LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""The largest code of each type."""

UINT8_ZERO = 128
"""The zero point of unsigned codes."""

_MIN_MAXIMUM = 1e-12
"""The smallest maximum of a channel or token, so that the scale of zeros is not zero."""
_CHUNK_BYTES = 1 << 20
"""The float32 numbers that are computed at a time while quantizing: they stay in the second-level cache."""


def quantize_channels(
    weight: Tensor, dtype: torch.dtype = torch.int8, largest: float | None = None
) -> tuple[Tensor, Tensor]:
    """[out, in] -> codes of the same shape and float32 scales [out]. `largest` is the largest code, default LARGEST."""
    scales = weight.abs().amax(dim=1).float().clamp_(min=_MIN_MAXIMUM).div_(largest or LARGEST[dtype])
    codes = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    for rows in _chunks(weight):  # the whole matrix in float32 would take more memory than the weight itself
        codes[rows] = to_codes(weight[rows] / scales[rows, None], dtype)
    return codes, scales


def to_unsigned_codes(hidden: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """[tokens, in] -> uint8: the integer parts of gain * hidden + shift, clipped. For a CPU.

    By way of int16, because torch casts float32 to uint8 three times as slowly as in these two steps.
    """
    return torch.addcmul(shift, hidden, gain).clamp_(0, 255).to(torch.int16).to(torch.uint8)


def quantize_signed(hidden: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[tokens, in] -> codes of this type and float32 scales [tokens, 1]: one expression, to be compiled for a GPU."""
    scales = hidden.abs().amax(dim=1, keepdim=True).float().clamp(min=_MIN_MAXIMUM) / LARGEST[dtype]
    return to_codes(hidden.float() / scales, dtype), scales


def to_codes(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds to codes. A cast to an integer truncates, so it needs rounding first; a cast to a float rounds."""
    return (numbers if dtype.is_floating_point else numbers.round()).to(dtype)


def _chunks(matrix: Tensor) -> list[slice]:
    num_rows = max(1, _CHUNK_BYTES // (4 * matrix.shape[1]))
    return [slice(start, start + num_rows) for start in range(0, len(matrix), num_rows)]


MAX_VARIANTS = 64


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """The function, compiled at its first call; `options` are those of torch.compile."""
    return torch_private.compile_variants(function, MAX_VARIANTS, **options)


P = ParamSpec("P")
R = TypeVar("R")


class Fused(Generic[P, R]):
    """The function, compiled for calls whose first argument is on a GPU.

    Where `is_left_out` is set, it runs as it is written, kernel by kernel: in this process, for every model.
    """

    def __init__(self, function: Callable[P, R]) -> None:
        self.name = function.__name__.strip("_")
        self.is_left_out = False
        self._function = function
        self._kernels: Callable[P, R] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        first: Any = args[0]
        if self.is_left_out or not is_compiled_for(first):
            return self._function(*args, **kwargs)
        if self._kernels is None:
            self._kernels = compiled(self._function)  # the second number of tokens makes this dimension a variable
        torch_private.mark_static(first, 1)  # there are few widths, and each is worth a kernel of its own
        return self._kernels(*args, **kwargs)


def is_compiled_for(tensor: Tensor) -> bool:
    return tensor.is_cuda


def add_norm(product: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """The sum, in the memory of the product, and the layer norm of the sum."""
    return product, add_norm_fused(product, residual, norm.weight, norm.bias, norm.eps)


def rescale_add_norm(
    sums: Tensor, tokens: Tensor, channels: Tensor, bias: Tensor, residual: Tensor, norm: Norm
) -> tuple[Tensor, Tensor]:
    """As `add_norm`, for the 32-bit sums of an 8-bit product."""
    return rescale_add_norm_fused(sums, tokens, channels, bias, residual, norm.weight, norm.bias, norm.eps)


@Fused
def quantize_fused(hidden: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes [tokens, in] and scales [tokens, 1]."""
    return quantize_signed(hidden, dtype)


@Fused
def rescale(sums: Tensor, tokens: Tensor, channels: Tensor, bias: Tensor) -> Tensor:
    """The int32 sums of an 8-bit product [tokens, out] times the scales [tokens, 1] and [out]; in the type of bias."""
    return _rescaled(sums, tokens, channels, bias).to(bias.dtype)


@Fused
def rescale_gelu(sums: Tensor, tokens: Tensor, channels: Tensor, bias: Tensor, gelu: Gelu) -> Tensor:
    return F.gelu(_rescaled(sums, tokens, channels, bias), approximate=gelu).to(bias.dtype)


@Fused
def add_norm_fused(product: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Adds the residual to the product; returns the layer norm of the sum."""
    return F.layer_norm(product.add_(residual), weight.shape, weight, bias, eps)


@Fused
def rescale_add_norm_fused(
    sums: Tensor,
    tokens: Tensor,
    channels: Tensor,
    bias: Tensor,
    residual: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    total = (_rescaled(sums, tokens, channels, bias) + residual).to(residual.dtype)
    return total, F.layer_norm(total, norm_weight.shape, norm_weight, norm_bias, eps)


def _rescaled(sums: Tensor, tokens: Tensor, channels: Tensor, bias: Tensor) -> Tensor:
    return sums.float() * tokens * channels + bias
