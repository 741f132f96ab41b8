"""The attention backends over packed rows.

- plain: two products and a softmax in float32 per group of rows. The reference, and the last resort. Runs anywhere.
- sdpa: torch's scaled dot product, one call per group of rows with one length and one mask. Runs anywhere.
- flex: FlexAttention, all rows in one compiled kernel with a block mask. On a CPU, a reference of it.
- varlen: FlashAttention over rows of different lengths, without blocks. Runs on GPUs from Ampere on.

Each `prepare` function computes once for a batch what its layers share. CUDA graphs repeat FLEX and VARLEN, and for few
tokens DENSE: all rows in one call under one mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from service.domain import IdArray
from service.engine.device import to_device
from service.engine.ops import compiled
from service.engine.packing import Blocks, Layout

Attend = Callable[[Tensor], Tensor]
"""The attention of one layer: fused queries, keys and values [tokens, 3, heads, head size] to [tokens, hidden]."""

Prepare = Callable[[Layout, torch.device, torch.dtype], Attend]
"""Computes once for a batch what all layers need, such as masks."""


@dataclass(frozen=True, slots=True)
class Group:
    """Adjacent rows with one length and one mask; the first one starts at token `start`."""

    start: int
    num_rows: int
    length: int
    mask: Tensor | None = None  # [length, length], added to the scores

    @property
    def end(self) -> int:
        return self.start + self.num_rows * self.length


def disable_cudnn() -> None:
    """Excludes cuDNN's kernel, which torch prefers on Hopper, from the scaled dot product.

    cuDNN makes a plan for each number and length of rows, in each thread. A plan takes the host tens of milliseconds,
    the kernel a fraction of one, and the batches of a server hardly ever repeat a size.
    Source: check_prefer_cudnn_attention in torch's sdp_utils.cpp, and the cache of its MHA.cpp.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def prepare_plain(layout: Layout, device: torch.device, dtype: torch.dtype) -> Attend:
    groups = make_groups(layout, device, torch.float32)

    def attend(qkv: Tensor) -> Tensor:
        num_tokens, _, num_heads, head_size = qkv.shape
        context = qkv.new_zeros(num_tokens, num_heads, head_size)
        for group in groups:
            rows = qkv[group.start : group.end].float().view(group.num_rows, group.length, 3, num_heads, head_size)
            query, key, value = rows.permute(2, 0, 3, 1, 4)
            scores = query @ key.transpose(-1, -2) * head_size**-0.5
            if group.mask is not None:
                scores += group.mask
            out = scores.softmax(-1) @ value
            context[group.start : group.end] = out.transpose(1, 2).reshape(-1, num_heads, head_size).to(qkv.dtype)
        return context.view(num_tokens, num_heads * head_size)

    return attend


def prepare_sdpa(layout: Layout, device: torch.device, dtype: torch.dtype) -> Attend:
    groups = make_groups(layout, device, dtype)

    def attend(qkv: Tensor) -> Tensor:
        num_tokens, _, num_heads, head_size = qkv.shape
        context = qkv.new_empty(num_tokens, num_heads, head_size)
        for group in groups:
            rows = qkv[group.start : group.end].view(group.num_rows, group.length, 3, num_heads, head_size)
            query, key, value = rows.permute(2, 0, 3, 1, 4)
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=group.mask)
            context[group.start : group.end] = out.transpose(1, 2).reshape(-1, num_heads, head_size)
        context[groups[-1].end :] = 0  # the padding must not be uninitialized memory
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
    """UniMC's mask: 0 where a token attends to another, -inf between two blocks; None when nothing is masked.

    Tokens of a block attend to their own block and to all tokens outside of blocks; the others attend to every token.
    Source: Yang et al., arXiv 2210.08590.
    """
    if len(blocks) < 2:
        return None
    owner = Layout(((length, blocks),), length).owners(length)[1]
    # Every row of a batch may have a mask of its own, and numpy makes one in a sixth of torch's time.
    mask = np.where(_are_apart(owner), np.float32(-np.inf), np.float32(0))
    return to_device(torch.from_numpy(mask), device).to(dtype)


def added_mask(owners: Tensor, dtype: torch.dtype) -> Tensor:
    """[tokens, tokens] from the owners [2, tokens] of a layout: 0 where a token attends to another, else -inf."""
    rows, blocks = owners
    is_hidden = (rows[:, None] != rows) | _are_apart(blocks)
    return torch.zeros(is_hidden.shape, device=owners.device, dtype=dtype).masked_fill_(is_hidden, -torch.inf)


def _are_apart(blocks: Any) -> Any:
    """[tokens, tokens]: whether two tokens are in different blocks. `blocks` [tokens] is an array of numpy or torch."""
    is_inside = blocks > 0
    return is_inside[:, None] & is_inside & (blocks[:, None] != blocks)


@dataclass(frozen=True, slots=True)
class Recordable:
    """An attention over all rows at once, whose work depends on the number of tokens alone.

    All that it needs of the rows of a batch is in int32 `arrays`, whose sizes depend on the number of tokens, too; None
    where it cannot compute these rows. `attend` is the attention by these arrays on its device. So a CUDA graph can
    repeat it with other arrays. `takes_blocks` is whether rows may have blocks.
    """

    name: str
    arrays: Callable[[Layout], tuple[IdArray, ...] | None]
    attend: Callable[[Sequence[Tensor], torch.dtype], Attend]
    takes_blocks: bool = True


def _owners(layout: Layout) -> tuple[IdArray]:
    return (layout.owners(layout.num_tokens),)


def _attend_dense(arrays: Sequence[Tensor], dtype: torch.dtype) -> Attend:
    [owners] = arrays
    mask = added_mask(owners, dtype)

    def attend(qkv: Tensor) -> Tensor:
        query, key, value = qkv.permute(1, 2, 0, 3)[:, None]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return out[0].transpose(0, 1).flatten(1)

    return attend


DENSE = Recordable("dense", _owners, _attend_dense)
"""One call under one mask [tokens, tokens]. The work grows with the square of the tokens, so it is for few tokens."""


FLEX_BLOCK = 128

FLEX_OPTIONS = {
    "BACKEND": "TRITON",  # no second kernel for fewer than 128 tokens, compiled when the first such batch arrives
    "BLOCKS_ARE_CONTIGUOUS": True,  # see flex_blocks
}


def prepare_flex(layout: Layout, device: torch.device, dtype: torch.dtype) -> Attend:
    return _attend_flex([to_device(torch.from_numpy(each), device) for each in _flex_arrays(layout)], dtype)


def _flex_arrays(layout: Layout) -> tuple[IdArray, ...]:
    return (*_owners(layout), *flex_blocks(layout))


def _attend_flex(arrays: Sequence[Tensor], dtype: torch.dtype) -> Attend:
    from torch.nn.attention.flex_attention import BlockMask  # imports the compiler, which is slow

    owners, counts, indices = arrays
    num_tokens = owners.shape[1]
    mask = BlockMask.from_kv_blocks(
        counts[None, None],
        indices[None, None],
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=flex_visible(owners[0], owners[1]),
        seq_lengths=(num_tokens, num_tokens),
        compute_q_blocks=False,  # only the backward pass needs them
    )
    kernel = _flex_kernel(owners.device.type)

    def attend(qkv: Tensor) -> Tensor:
        query, key, value = qkv.permute(1, 2, 0, 3)[:, None]
        out = kernel(query, key, value, block_mask=mask)
        return out[0].transpose(0, 1).flatten(1)

    return attend


FLEX = Recordable("flex", _flex_arrays, _attend_flex)
"""FlexAttention: the work grows with the rows that share a block of 128 tokens."""


def flex_visible(rows: Tensor, blocks: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """FlexAttention's mask, from the owners of the tokens (see Layout.owners)."""

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        is_same_block = (blocks[query] == 0) | (blocks[key] == 0) | (blocks[query] == blocks[key])
        return (rows[query] == rows[key]) & is_same_block

    return sees


def flex_blocks(layout: Layout) -> tuple[IdArray, IdArray]:
    """For each block of 128 queries, the number of 128-key blocks that it attends to, [blocks], and the indices of all
    key blocks with these first, [blocks, blocks]. Rows are contiguous, so the relevant blocks are adjacent."""
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
    """What the kernel computes, for all pairs of tokens: those in key blocks that it skips are masked."""
    token = torch.arange(query.shape[2])
    block = token // FLEX_BLOCK
    is_computed = block_mask.to_dense()[0, 0].bool()[block[:, None], block]
    is_seen = block_mask.mask_mod(token, token, token[:, None], token) & is_computed
    return F.scaled_dot_product_attention(query, key, value, attn_mask=is_seen)


MAX_HEAD_SIZE = 256
MIN_CAPABILITY = (8, 0)  # Ampere


def varlen_runs_on(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return (
        head_size <= MAX_HEAD_SIZE and head_size % 8 == 0 and torch.cuda.get_device_capability(device) >= MIN_CAPABILITY
    )


def prepare_varlen(layout: Layout, device: torch.device, dtype: torch.dtype) -> Attend:
    ends = layout.ends  # the padding is a row like the others, so it is written and finite
    longest = max(end - start for start, end in pairwise(ends))
    return _attend_varlen(to_device(torch.tensor(ends, dtype=torch.int32), device), longest)


def _attend_varlen(offsets: Tensor, longest: int) -> Attend:
    from torch.nn.attention.varlen import varlen_attn  # registers kernels, which a CPU does not need

    def attend(qkv: Tensor) -> Tensor:
        query, key, value = qkv.unbind(1)
        out = varlen_attn(query, key, value, offsets, offsets, longest, longest)
        assert isinstance(out, Tensor)
        return out.flatten(1)

    return attend


MAX_VARLEN_ROW = 512
MIN_VARLEN_ROW = 32
"""The longest row of VARLEN, and the least mean length: its kernel starts a block for each part of as many rows of the
longest length, and most of them have nothing to do."""


def _varlen_arrays(layout: Layout) -> tuple[IdArray] | None:
    if layout.num_plain < len(layout.rows):
        return None
    offsets, num_tokens = layout.offsets, layout.num_tokens
    starts = [*offsets, *range(offsets[-1] + MAX_VARLEN_ROW, num_tokens, MAX_VARLEN_ROW)]  # the padding, as rows
    num_rows = num_tokens // MIN_VARLEN_ROW
    if len(starts) > num_rows or any(length > MAX_VARLEN_ROW for length, _ in layout.rows):
        return None
    ends = np.full(num_rows + 1, num_tokens, dtype=np.int32)  # the rows that are missing are empty
    ends[: len(starts)] = starts
    return (ends,)


VARLEN = Recordable(
    "varlen", _varlen_arrays, lambda arrays, dtype: _attend_varlen(arrays[0], MAX_VARLEN_ROW), takes_blocks=False
)
"""FlashAttention."""
