"""Weights of 4 bits in blocks of 32 that share a scale; they are expanded when they are loaded.

A block is 18 bytes: the scale in float16 (little-endian), then 16 bytes of two weights each. Byte j holds weight j in
its low half and weight j + 16 in its high half, as q from 0 to 15; the weight is (q - 8) * scale. GGML calls this Q4_0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from service.checkpoints.checkpoint import BLOCK_SIZE

_SCALE_BYTES = 2
BLOCK_BYTES = _SCALE_BYTES + BLOCK_SIZE // 2

_ELEMENTS_AT_ONCE = 1 << 20
"""Expanded at a time, in float32: 4 MB, so that there is never a second copy of the word embeddings."""


def expanded_shape(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of the weights in a tensor of blocks [out, in / 32, 18]; None where its shape is another."""
    if len(shape) != 3 or shape[-1] != BLOCK_BYTES:
        return None
    return shape[0], shape[1] * BLOCK_SIZE


def expand_into(blocks: Tensor, out: Tensor) -> None:
    """Writes the weights of `blocks` (uint8) into `out`, which has their shape, rounded to its precision."""
    num_rows = max(1, _ELEMENTS_AT_ONCE // max(1, out.shape[1]))
    for some, rows in zip(blocks.split(num_rows), out.split(num_rows), strict=True):
        rows.copy_(_expand(some.to(out.device)).view(rows.shape))


def _expand(blocks: Tensor) -> Tensor:
    """[rows, blocks, 32] in float32, where the product is exact."""
    scales = blocks[..., :_SCALE_BYTES].contiguous().view(torch.float16).float()
    pairs = blocks[..., _SCALE_BYTES:]
    return (torch.cat([pairs & 15, pairs >> 4], dim=-1).float() - 8) * scales
