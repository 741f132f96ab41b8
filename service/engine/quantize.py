"""Numbers to codes of 8 bits and scales: weights per output channel, hidden states per token.

Symmetric, to the largest magnitude of the channel or token, as in LLM.int8 (Dettmers et al., arXiv 2208.07339) without
its outlier columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""The largest number of each kind of code."""

HALF = 128
"""What an unsigned byte calls zero."""

_LEAST = 1e-12
"""A channel or token of zeros keeps a scale that can be divided by."""
_CHUNK_BYTES = 1 << 20
"""Of float32 made at a time while quantising: it stays in the second-level cache."""


def quantize_channels(weight: Tensor, dtype: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """[out, in] -> codes of the same shape and float32 scales [out]."""
    scales = weight.abs().amax(dim=1).float().clamp_(min=_LEAST).div_(LARGEST[dtype])
    codes = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    for rows in _chunks(weight):  # float32 of the whole matrix would be a second copy of it, and more
        codes[rows] = to_codes(weight[rows] / scales[rows, None], dtype)
    return codes, scales


def quantize_tokens(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """[tokens, in] -> uint8 codes, of which 128 is zero, and float32 scales [tokens, 1]. On a CPU."""
    scales = hidden.abs().amax(dim=1, keepdim=True).float().clamp_(min=_LEAST).div_(127)
    codes = torch.empty(hidden.shape, dtype=torch.uint8)
    half = torch.tensor(HALF + 0.5)  # the cast to an integer cuts: half more, and it rounds
    for rows in _chunks(hidden):
        codes[rows] = torch.addcmul(half, hidden[rows], scales[rows].reciprocal())
    return codes, scales


def quantize_signed(hidden: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[tokens, in] -> codes of that kind and float32 scales [tokens, 1]: one expression, to be compiled for a GPU."""
    scales = hidden.abs().amax(dim=1, keepdim=True).float().clamp(min=_LEAST) / LARGEST[dtype]
    return to_codes(hidden.float() / scales, dtype), scales


def to_codes(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """A cast to an integer cuts, so it needs rounding before; one to a float rounds by itself."""
    return (numbers if dtype.is_floating_point else numbers.round()).to(dtype)


def _chunks(matrix: Tensor) -> list[slice]:
    num_rows = max(1, _CHUNK_BYTES // (4 * matrix.shape[1]))
    return [slice(start, start + num_rows) for start in range(0, len(matrix), num_rows)]
