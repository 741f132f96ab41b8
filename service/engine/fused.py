"""What stands between two matrix products, each function one kernel on a GPU: it reads and writes memory once.

Written as plain torch, which is what a CPU runs and what the tests compare. On a GPU torch.compile makes the kernels
at the first call; they take any number of tokens. Where torch keeps them over a restart is set in the child.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from service.engine.compiling import compiled
from service.engine.pointwise import Gelu, Norm
from service.engine.quantize import quantize_signed

P = ParamSpec("P")
R = TypeVar("R")


def fused(function: Callable[P, R]) -> Callable[P, R]:
    """Compiled where the first argument lies on a GPU."""

    @cache
    def kernels() -> Callable[P, R]:
        made: Callable[P, R] = compiled(function)  # the first size is as it is, the second makes tokens a variable
        return made

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        first: Any = args[0]
        if not first.is_cuda:
            return function(*args, **kwargs)
        run = kernels()
        torch._dynamo.mark_static(first, 1)  # widths are few, and each is worth a kernel of its own
        return run(*args, **kwargs)

    return call


def add_norm(product: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """The sum, and the layer norm of the sum."""
    return _add_norm(product, residual, norm.weight, norm.bias, norm.eps)


def rescale_add_norm(
    sums: Tensor, tokens: Tensor, channels: Tensor, bias: Tensor, residual: Tensor, norm: Norm
) -> tuple[Tensor, Tensor]:
    """As add_norm, of the 32-bit sums of an 8-bit product."""
    return _rescale_add_norm(sums, tokens, channels, bias, residual, norm.weight, norm.bias, norm.eps)


@fused
def quantize_fused(hidden: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes [tokens, in] and scales [tokens, 1]."""
    return quantize_signed(hidden, dtype)


@fused
def rescale(sums: Tensor, tokens: Tensor, channels: Tensor, bias: Tensor) -> Tensor:
    """The 32-bit sums of an 8-bit product [tokens, out], by the scales [tokens, 1] and [out]; in the bias's type."""
    return _rescaled(sums, tokens, channels, bias).to(bias.dtype)


@fused
def rescale_gelu(sums: Tensor, tokens: Tensor, channels: Tensor, bias: Tensor, gelu: Gelu) -> Tensor:
    return F.gelu(_rescaled(sums, tokens, channels, bias), approximate=gelu).to(bias.dtype)


@fused
def _add_norm(product: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = product + residual
    return total, F.layer_norm(total, weight.shape, weight, bias, eps)


@fused
def _rescale_add_norm(
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
