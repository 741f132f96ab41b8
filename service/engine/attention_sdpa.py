"""Attention by torch's scaled dot product, one call per group of rows of one length and one mask. Runs anywhere.

Of the kernels that torch has for it on a GPU, cuDNN's is left out (`leave_out_cudnn`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from service.engine.copies import to_device
from service.engine.layout import Blocks, Layout


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one length and one mask that lie side by side, from token `start` on."""

    start: int
    num_rows: int
    length: int
    mask: Tensor | None = None  # [length, length], added to the scores

    @property
    def end(self) -> int:
        return self.start + self.num_rows * self.length


def leave_out_cudnn() -> None:
    """torch asks cuDNN first on Hopper, and cuDNN makes a plan for each number and length of rows, in each thread.

    A plan takes the host tens of milliseconds, the kernel a fraction of one, and the batches of a server are hardly
    ever of sizes that it had before.
    Source: check_prefer_cudnn_attention in torch's sdp_utils.cpp, and the cache of its MHA.cpp.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def prepare_sdpa(layout: Layout, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    groups = make_groups(layout, device, dtype)

    def attend(qkv: Tensor) -> Tensor:
        num_tokens, _, num_heads, head_size = qkv.shape
        context = qkv.new_empty(num_tokens, num_heads, head_size)
        for group in groups:
            rows = qkv[group.start : group.end].view(group.num_rows, group.length, 3, num_heads, head_size)
            query, key, value = rows.permute(2, 0, 3, 1, 4)
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=group.mask)
            context[group.start : group.end] = out.transpose(1, 2).reshape(-1, num_heads, head_size)
        context[groups[-1].end :] = 0  # what fills the bucket: anything but what happens to lie in memory
        return context.view(num_tokens, num_heads * head_size)

    return attend


def make_groups(layout: Layout, device: torch.device, dtype: torch.dtype) -> list[Group]:
    groups: list[Group] = []
    start = 0
    for (length, blocks), members in groupby(layout.rows):
        group = Group(start, len(list(members)), length, block_mask(length, blocks, device, dtype))
        groups.append(group)
        start = group.end
    return groups


def block_mask(length: int, blocks: Blocks, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """UniMC's mask: 0 where a token sees another, -inf between two different blocks; None when all see all.

    Tokens of a block see their own block and all that is outside of blocks; the others see everything.
    Source: Yang et al., arXiv 2210.08590.
    """
    if len(blocks) < 2:
        return None
    owners = Layout(((length, blocks),), length).owners(length)
    return added_mask(to_device(torch.from_numpy(owners), device), dtype)


def added_mask(owners: Tensor, dtype: torch.dtype) -> Tensor:
    """[tokens, tokens] from the owners [2, tokens] of a layout: 0 where a token sees another, else -inf."""
    rows, blocks = owners
    is_same_block = (blocks[:, None] == 0) | (blocks == 0) | (blocks[:, None] == blocks)
    is_seen = (rows[:, None] == rows) & is_same_block
    return torch.zeros(is_seen.shape, device=owners.device, dtype=dtype).masked_fill_(~is_seen, -torch.inf)


def dense(mask: Tensor) -> Callable[[Tensor], Tensor]:
    """All rows in one call under one mask [tokens, tokens]: the work is the square of the tokens, so for few of them,
    but its shapes depend on nothing else."""

    def attend(qkv: Tensor) -> Tensor:
        query, key, value = qkv.permute(1, 2, 0, 3)[:, None]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return out[0].transpose(0, 1).flatten(1)

    return attend
