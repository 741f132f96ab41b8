"""Attention by FlexAttention: one call for all rows of a batch, UniMC's blocks included.

The mask is a function of two tokens: they see each other if they are of one row and not in two different blocks of it.
Which squares of 128 x 128 tokens it has to look at follows from where the rows lie, so it is computed from that and
not from all pairs of tokens. On a GPU the kernel is compiled once, for any number of tokens; elsewhere a reference
takes its place, which is slow and there for the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from service.domain import IdArray
from service.engine.compiling import compiled
from service.engine.copies import to_device
from service.engine.layout import Layout

FLEX_BLOCK = 128

FLEX_OPTIONS = {
    "BACKEND": "TRITON",  # not another kernel for fewer than 128 tokens, compiled when the first such batch comes
    "BLOCKS_ARE_CONTIGUOUS": True,  # see squares
}


def prepare_flex(layout: Layout, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    from torch.nn.attention.flex_attention import BlockMask  # brings the compiler along, which is slow to import

    owners = to_device(torch.from_numpy(layout.owners(layout.num_tokens)), device)
    counts, indices = (to_device(torch.from_numpy(each), device) for each in flex_squares(layout))
    mask = BlockMask.from_kv_blocks(
        counts[None, None],
        indices[None, None],
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=flex_visible(owners[0], owners[1]),
        seq_lengths=(layout.num_tokens, layout.num_tokens),
        compute_q_blocks=False,  # only the way back needs them
    )
    kernel = _flex_kernel(device.type)

    def attend(qkv: Tensor) -> Tensor:
        query, key, value = qkv.permute(1, 2, 0, 3)[:, None]
        out = kernel(query, key, value, block_mask=mask)
        return out[0].transpose(0, 1).flatten(1)

    return attend


def flex_visible(rows: Tensor, blocks: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """FlexAttention's mask, from the owners of the tokens (see Layout.owners)."""

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        is_same_block = (blocks[query] == 0) | (blocks[key] == 0) | (blocks[query] == blocks[key])
        return (rows[query] == rows[key]) & is_same_block

    return sees


def flex_squares(layout: Layout) -> tuple[IdArray, IdArray]:
    """For each 128 queries, how many blocks of 128 keys they have to look at [blocks], and all blocks of keys with
    these in front [blocks, blocks]. Rows are whole, so the blocks that matter lie side by side."""
    ends = np.array(layout.ends)
    first = np.arange(0, layout.num_tokens, FLEX_BLOCK)
    last = np.minimum(first + FLEX_BLOCK, layout.num_tokens) - 1
    low = ends[np.searchsorted(ends, first, side="right") - 1] // FLEX_BLOCK
    high = -(-ends[np.searchsorted(ends, last, side="right")] // FLEX_BLOCK)
    every = np.arange(len(first))
    return (high - low).astype(np.int32), ((low[:, None] + every) % len(every)).astype(np.int32)


@cache
def _flex_kernel(device_type: str) -> Callable[..., Tensor]:
    if device_type != "cuda":
        return flex_reference
    from torch.nn.attention.flex_attention import flex_attention

    return partial(compiled(flex_attention, dynamic=True), kernel_options=FLEX_OPTIONS)


def flex_reference(query: Tensor, key: Tensor, value: Tensor, block_mask: Any) -> Tensor:
    """What the kernel computes, with all pairs of tokens written out: those of squares that it skips see nothing."""
    token = torch.arange(query.shape[2])
    square = token // FLEX_BLOCK
    is_looked_at = block_mask.to_dense()[0, 0].bool()[square[:, None], square]
    is_seen = block_mask.mask_mod(token, token, token[:, None], token) & is_looked_at
    return F.scaled_dot_product_attention(query, key, value, attn_mask=is_seen)
