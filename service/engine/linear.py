"""Linear maps of the encoder, each in the layout and the arithmetic that is fastest on its device.

A map takes hidden states [tokens, in] to [tokens, out]: alone, with GELU, or added to a residual and normalized.
`choose` returns the class for a device, a precision and a quantization.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from service.domain import Quantization
from service.engine import ops, torch_private
from service.engine.device import check_capability, int8_weight_limit
from service.engine.ops import UINT8_ZERO, Fused, Gelu, Norm, quantize_channels, to_unsigned_codes
from service.errors import SettingError


@dataclass(frozen=True, slots=True)
class InputRange:
    """The least and the greatest number of each input channel of a map, [in] float32."""

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, hidden: Tensor) -> InputRange:
        """The range of some inputs [tokens, in]."""
        low, high = torch.aminmax(hidden.float(), dim=0)
        return cls(low, high)


class Linear(ABC):
    """A linear map. Subclasses are dataclasses whose fields are tensors, so a map can be saved and mapped again."""

    __slots__ = ()

    compiled: ClassVar[tuple[Fused[Any, Any], ...]] = ()
    """The compiled functions that the map calls on a GPU."""
    has_fixed_scales: ClassVar[bool] = False
    """Whether the scales of its inputs come from the range that they had on known rows (see `input_ranges`)."""
    input_fields: ClassVar[tuple[str, ...]] = ()
    """The fields that have a number for each input channel; the others next to the weight have one for each output."""
    weight: Any
    """In the layout of the subclass: only the map itself can use it."""

    @classmethod
    @abstractmethod
    def of(cls, weight: Tensor, bias: Tensor, inputs: InputRange | None = None) -> Self:
        """Converts a weight [out, in] and a bias [out]. The map may keep `weight` itself.

        `inputs` is needed by maps that have fixed scales; the others ignore it.
        """

    @abstractmethod
    def __call__(self, hidden: Tensor) -> Tensor: ...

    def gelu(self, hidden: Tensor, approximate: Gelu) -> Tensor:
        """The GELU of the map."""
        return ops.gelu(self(hidden), approximate)

    def add_norm(self, hidden: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        """The map plus `residual` [tokens, out], and the layer norm of this sum."""
        out = self(hidden).add_(residual)
        return out, norm(out)

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cast("Any", cls)))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `tensors`."""
        return cast("Any", cls)(**tensors)  # type: ignore[no-any-return]

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name."""
        return {name: getattr(self, name) for name in self.field_names()}


@dataclass(frozen=True, slots=True)
class Plain(Linear):
    """torch's own linear, with the weight [out, in] as it was loaded. Runs anywhere."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, inputs: InputRange | None = None) -> Self:
        return cls(weight, bias)

    def __call__(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight, self.bias)


FUSES = not torch_private.HAS_AVX2_ONLY
"""Whether oneDNN computes GELU and residual with the product in less time than torch does afterwards. With AVX2 alone
an encoder of 384 channels is 1.08 to 1.1 times as fast without."""


@dataclass(frozen=True, slots=True)
class OneDnn(Linear):
    """oneDNN on a CPU, with a packed weight: reordered once and not in every call.

    The bias is added while the sums are still in registers, in float32, and so are GELU and residual where it `FUSES`.
    """

    weight: Tensor  # packed
    bias: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, inputs: InputRange | None = None) -> Self:
        return cls(torch_private.pack(weight), bias)

    def __call__(self, hidden: Tensor) -> Tensor:
        return torch_private.linear(hidden, self.weight, self.bias)

    def gelu(self, hidden: Tensor, approximate: Gelu) -> Tensor:
        if not FUSES:
            return Linear.gelu(self, hidden, approximate)
        return torch_private.linear_gelu(hidden, self.weight, self.bias, approximate)

    def add_norm(self, hidden: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        if not FUSES:
            return Linear.add_norm(self, hidden, residual, norm)
        out = torch_private.linear_add(hidden, residual, self.weight, self.bias)
        return out, norm(out)


_SMOOTHING = 0.7
"""How far the scale of an input channel follows its range; the weights of the channel take the rest. From 0.7 to 0.8
the log-odds of `mini`'s answers move least, from 0.65 to 0.8 the vectors of `e5-small`.
Source: Xiao et al., SmoothQuant, arXiv 2211.10438."""
_MARGIN = 1.3
"""How much further than on the known rows an input may lie before it is clipped."""
_MIN_REACH = 1e-6


@dataclass(frozen=True, slots=True)
class Int8Codes(Linear):
    """8-bit weights with a scale per output channel, and 8-bit inputs with fixed scales. ONNX Runtime multiplies them.

    The scales of the input channels are multiplied into the weights, and the middle of their common range into the
    bias, so the codes of all inputs have one scale and one zero point: they are gain * hidden + offset, rounded.

    Libraries multiply signed weights fastest with unsigned inputs. On a CPU without VNNI they add pairs of products in
    16 bits, so the weights have 7 bits there (see `int8_weight_limit`). A call computes what they compute, in float32:
    the sums are exact, and slow.
    """

    has_fixed_scales = True
    input_fields = ("gain", "offset")
    weight: Tensor  # [out, in] int8
    scales: Tensor  # [out] float32
    bias: Tensor  # [out] float32
    gain: Tensor  # [in] float32
    offset: Tensor  # [in] float32: an integer, the same for all

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, inputs: InputRange | None = None) -> Self:
        assert inputs, "maps with fixed scales are made after the ranges of their inputs are known"
        weight = weight.float()
        reach = torch.maximum(inputs.low.abs(), inputs.high.abs()).clamp(min=_MIN_REACH)
        smooth = reach**_SMOOTHING / weight.abs().amax(dim=0).clamp(min=_MIN_REACH) ** (1 - _SMOOTHING)
        # With zero in the range, the zero point is a code.
        low, high = float((inputs.low / smooth).min().clamp(max=0)), float((inputs.high / smooth).max().clamp(min=0))
        step = _MARGIN * max(high - low, _MIN_REACH) / (2 * (UINT8_ZERO - 1))
        middle = round((high + low) / 2 / step)
        codes, scales = quantize_channels(weight * (smooth * step), largest=int8_weight_limit())
        # With the weights as they were rounded: an input of zero adds exactly nothing.
        bias = bias.float() + scales * codes.float().sum(dim=1) * middle
        return cls(codes, scales, bias, (smooth * step).reciprocal(), torch.full_like(smooth, -middle))

    def __call__(self, hidden: Tensor) -> Tensor:
        codes = torch.addcmul(self.offset, hidden.float(), self.gain).round_().clamp_(-UINT8_ZERO, 255 - UINT8_ZERO)
        return F.linear(codes, self.weight.float()).mul_(self.scales).add_(self.bias).to(hidden.dtype)


@dataclass(frozen=True, slots=True)
class OneDnnInt8(Linear):
    """oneDNN on a CPU, by `Int8Codes`. Bias, GELU and residual are added while the sums are in registers."""

    has_fixed_scales = True
    input_fields = ("gain", "shift")
    weight: Tensor  # packed
    scales: Tensor  # [out] float32
    zeros: Tensor  # [out] int32
    bias: Tensor  # [out] float32
    gain: Tensor  # [in] float32
    shift: Tensor  # [in] float32; the codes are the integer parts of gain * hidden + shift

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, inputs: InputRange | None = None) -> Self:
        made = Int8Codes.of(weight, bias, inputs)
        zeros = torch.zeros(len(made.scales), dtype=torch.int32)
        shift = made.offset + (UINT8_ZERO + 0.5)
        return cls(torch_private.pack_int8(made.weight), made.scales, zeros, made.bias, made.gain, shift)

    def __call__(self, hidden: Tensor) -> Tensor:
        return self._multiply(hidden)

    def gelu(self, hidden: Tensor, approximate: Gelu) -> Tensor:
        return self._multiply(hidden, approximate)

    def add_norm(self, hidden: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        out = torch_private.linear_int8_add(
            to_unsigned_codes(hidden, self.gain, self.shift),
            UINT8_ZERO,
            residual,
            self.weight,
            self.scales,
            self.zeros,
            self.bias,
        ).to(residual.dtype)
        return out, norm(out)

    def _multiply(self, hidden: Tensor, gelu: Gelu | None = None) -> Tensor:
        codes = to_unsigned_codes(hidden, self.gain, self.shift)
        return torch_private.linear_int8(
            codes, UINT8_ZERO, self.weight, self.scales, self.zeros, self.bias, hidden.dtype, gelu
        ).to(hidden.dtype)


@dataclass(frozen=True, slots=True)
class Cuda(Plain):
    """A GPU, in the precision of the weights: torch's own linear, with fused GELU and norm."""

    compiled = (ops.add_norm_fused,)

    def gelu(self, hidden: Tensor, approximate: Gelu) -> Tensor:
        # cuBLAS has the approximation by tanh only, and computes it with fewer digits than float32 has.
        if approximate == "tanh" and hidden.dtype == torch.bfloat16 and hidden.is_cuda:
            return torch_private.addmm_gelu_tanh(hidden, self.weight, self.bias)
        return F.gelu(self(hidden), approximate=approximate)

    def add_norm(self, hidden: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        return ops.add_norm(self(hidden), residual, norm)


MIN_INT_MM_TOKENS = 24
"""`torch._int_mm` takes more than 16 rows on a GPU, and of those multiples of 8, as the number of tokens is."""

FP8_TOKENS = 16
"""cuBLAS multiplies float8 matrices whose sides are multiples of this. On an H200 the product of 24 rows failed with
CUBLAS_STATUS_NOT_SUPPORTED, in torch 2.11 with CUDA 13.0."""


def _pad(hidden: Tensor, num_tokens: int) -> Tensor:
    """With rows of zeros up to this number of tokens."""
    missing = num_tokens - len(hidden)
    return F.pad(hidden, (0, 0, 0, missing)) if missing > 0 else hidden


@dataclass(frozen=True, slots=True)
class CudaInt8(Linear):
    """A GPU: 8-bit weights with a scale per output channel, 8-bit inputs with a scale per token, 32-bit sums."""

    compiled = (ops.quantize_fused, ops.rescale, ops.rescale_gelu, ops.rescale_add_norm_fused)
    weight: Tensor  # [out, in] int8
    scales: Tensor  # [out] float32
    bias: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, inputs: InputRange | None = None) -> Self:
        return cls(*quantize_channels(weight), bias)

    def __call__(self, hidden: Tensor) -> Tensor:
        return ops.rescale(*self._multiply(hidden), self.scales, self.bias)

    def gelu(self, hidden: Tensor, approximate: Gelu) -> Tensor:
        return ops.rescale_gelu(*self._multiply(hidden), self.scales, self.bias, approximate)

    def add_norm(self, hidden: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        return ops.rescale_add_norm(*self._multiply(hidden), self.scales, self.bias, residual, norm)

    def _multiply(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The product of the codes, int32 [tokens, out], and the scales of the tokens [tokens, 1]."""
        codes, scales = ops.quantize_fused(_pad(hidden, MIN_INT_MM_TOKENS), torch.int8)
        return torch_private.int_mm(codes, self.weight)[: len(hidden)], scales[: len(hidden)]


@dataclass(frozen=True, slots=True)
class CudaFp8(Linear):
    """A GPU: 8-bit float (e4m3) weights and inputs, with a scale per output channel and per token.

    The kernel applies the scales. Its results are bfloat16 for every type of `hidden`.
    """

    compiled = (ops.quantize_fused, ops.add_norm_fused)
    weight: Tensor  # [out, in] float8_e4m3fn
    scales: Tensor  # [1, out] float32
    bias: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, inputs: InputRange | None = None) -> Self:
        codes, scales = quantize_channels(weight, torch.float8_e4m3fn)
        return cls(codes, scales[None], bias.to(torch.bfloat16))

    def __call__(self, hidden: Tensor) -> Tensor:
        padded = _pad(hidden, -(-len(hidden) // FP8_TOKENS) * FP8_TOKENS)
        codes, scales = ops.quantize_fused(padded, torch.float8_e4m3fn)
        product = torch_private.scaled_mm(codes, self.weight, scales, self.scales, self.bias)
        return product[: len(hidden)].to(hidden.dtype)

    def add_norm(self, hidden: Tensor, residual: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        return ops.add_norm(self(hidden), residual, norm)


def choose(device: torch.device, dtype: torch.dtype, quantization: Quantization) -> type[Linear]:
    """The class of map for this device, precision and quantization.

    Raises SettingError when the device does not support the quantization.
    """
    if device.type == "cpu" and quantization == "none" and not torch_private.has_onednn(dtype):
        return Plain
    linear_class = _CLASSES.get((device.type, quantization))
    if linear_class is None:
        raise SettingError(f"quantization {quantization!r}: not on {device.type}")
    check_capability(quantization, device)
    return linear_class


_CLASSES: dict[tuple[str, Quantization], type[Linear]] = {
    ("cpu", "none"): OneDnn,
    ("cpu", "int8"): OneDnnInt8,
    ("cuda", "none"): Cuda,
    ("cuda", "int8"): CudaInt8,
    ("cuda", "fp8"): CudaFp8,
}
