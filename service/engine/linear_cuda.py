"""Linear maps for NVIDIA GPUs, by the kernels that torch has: in the weights' own precision, in int8, in fp8.

The bias goes into the matrix product everywhere; GELU too where cuBLAS has it. What is left is one kernel between two
products (see `fused`). All of it runs on a CPU as well, slowly: that is how it is tested.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from service.engine import fused
from service.engine.pointwise import Gelu, Norm
from service.engine.quantize import quantize_channels


@dataclass(frozen=True, slots=True)
class Cuda:
    """In the precision of the weights."""

    weight: Tensor
    bias: Tensor

    def __call__(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight, self.bias)

    def activated(self, hidden: Tensor, gelu: Gelu) -> Tensor:
        # cuBLAS has the approximation by tanh only, and computes it with fewer digits than float32 has.
        if gelu == "tanh" and hidden.dtype == torch.bfloat16 and hidden.is_cuda:
            return torch._addmm_activation(self.bias, hidden, self.weight.t(), use_gelu=True)
        return F.gelu(self(hidden), approximate=gelu)

    def added(self, hidden: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        return fused.add_norm(self(hidden), residual, norm)


LEAST_TOKENS = 17
"""torch._int_mm takes no fewer on a GPU; here they come in eights."""


@dataclass(frozen=True, slots=True)
class CudaInt8:
    """8-bit weights with a scale per output channel, 8-bit inputs with a scale per token; sums in 32 bits."""

    weight: Tensor  # [out, in] int8
    scales: Tensor  # [out] float32
    bias: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor) -> Self:
        return cls(*quantize_channels(weight), bias)

    def __call__(self, hidden: Tensor) -> Tensor:
        return fused.rescale(*self._sums(hidden), self.scales, self.bias)

    def activated(self, hidden: Tensor, gelu: Gelu) -> Tensor:
        return fused.rescale_gelu(*self._sums(hidden), self.scales, self.bias, gelu)

    def added(self, hidden: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        return fused.rescale_add_norm(*self._sums(hidden), self.scales, self.bias, residual, norm)

    def _sums(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The product of the codes, and the scales of the tokens."""
        codes, scales = fused.quantize_fused(hidden, torch.int8)
        missing = max(0, LEAST_TOKENS - len(codes))
        sums = torch._int_mm(F.pad(codes, (0, 0, 0, missing)) if missing else codes, self.weight.t())
        return sums[: len(codes)], scales


@dataclass(frozen=True, slots=True)
class CudaFp8:
    """Weights and inputs in 8-bit floats (e4m3), scaled per output channel and per token; the kernel scales back, and
    its results are bfloat16 whatever they become afterwards."""

    weight: Tensor  # [out, in] float8_e4m3fn
    scales: Tensor  # [1, out] float32
    bias: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor) -> Self:
        codes, scales = quantize_channels(weight, torch.float8_e4m3fn)
        return cls(codes, scales[None], bias.to(torch.bfloat16))

    def __call__(self, hidden: Tensor) -> Tensor:
        codes, scales = fused.quantize_fused(hidden, torch.float8_e4m3fn)
        weight, kind = self.weight.t(), torch.bfloat16
        out = torch._scaled_mm(codes, weight, scales, self.scales, self.bias, out_dtype=kind, use_fast_accum=True)
        return out.to(hidden.dtype)

    def activated(self, hidden: Tensor, gelu: Gelu) -> Tensor:
        return F.gelu(self(hidden), approximate=gelu)

    def added(self, hidden: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        return fused.add_norm(self(hidden), residual, norm)
