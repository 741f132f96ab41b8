"""Ways to compute attention over packed rows, and only that.

A backend is one function and one entry in BACKENDS; the parity tests find it there. Knows no layers and no weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from service.engine.packing import Packed, layout, to_device
from service.errors import SettingError


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one length and one mask that lie side by side in the pack, from token `start` on."""

    start: int
    num_rows: int
    length: int
    mask: Tensor | None = None  # [length, length], added to the scores

    @property
    def end(self) -> int:
        return self.start + self.num_rows * self.length


@dataclass(frozen=True, slots=True)
class Plan:
    """What attention must know of a batch; made once, used by every layer."""

    groups: tuple[Group, ...]
    cu_lengths: Tensor  # [rows + 1] int32 on the device
    max_length: int


# From fused queries, keys and values [tokens, 3, heads, head size] to [tokens, heads * head size].
Attend = Callable[[Tensor, Plan], Tensor]


@dataclass(frozen=True, slots=True)
class Backend:
    attend: Attend
    runs_on: Callable[[torch.device], bool]


def make_plan(packed: Packed, device: torch.device, dtype: torch.dtype) -> Plan:
    """Rows of one length and with the same blocks share a call, and a mask."""
    groups: list[Group] = []
    for (length, blocks), members in groupby(enumerate(packed.encodings), key=lambda each: layout(each[1])):
        indices = [index for index, _ in members]
        mask = block_mask(length, blocks, device, dtype)
        groups.append(Group(packed.offsets[indices[0]], len(indices), length, mask))
    return Plan(tuple(groups), packed.cu_lengths, max(packed.lengths))


def block_mask(
    length: int, blocks: tuple[tuple[int, int], ...], device: torch.device, dtype: torch.dtype
) -> Tensor | None:
    """UniMC's mask: 0 where a token sees another, -inf between two different blocks; None when all see all.

    Tokens of a block see their own block and all that is outside of blocks; the others see everything.
    Source: Yang et al., arXiv 2210.08590.
    """
    if len(blocks) < 2:
        return None
    owner = torch.zeros(length, dtype=torch.int32)
    for index, (start, end) in enumerate(blocks, start=1):
        owner[start:end] = index
    owner = to_device(owner, device)
    rows, columns = owner[:, None], owner[None, :]
    is_hidden = (rows != 0) & (columns != 0) & (rows != columns)
    return torch.zeros(length, length, device=device, dtype=dtype).masked_fill_(is_hidden, -torch.inf)


def sdpa(qkv: Tensor, plan: Plan) -> Tensor:
    """torch's scaled dot product attention, one call per group of rows of one length."""
    num_tokens, _, num_heads, head_size = qkv.shape
    context = qkv.new_empty(num_tokens, num_heads, head_size)
    for group in plan.groups:
        rows = qkv[group.start : group.end].view(group.num_rows, group.length, 3, num_heads, head_size)
        query, key, value = rows.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=group.mask)
        context[group.start : group.end] = out.transpose(1, 2).reshape(-1, num_heads, head_size)
    return context.view(num_tokens, num_heads * head_size)


BACKENDS: dict[str, Backend] = {
    "sdpa": Backend(sdpa, runs_on=lambda device: True),
}


def choose(name: str, device: torch.device) -> tuple[str, Attend]:
    """The backend of that name; `auto` is the first of the table that runs on the device."""
    fitting = {each: backend for each, backend in BACKENDS.items() if backend.runs_on(device)}
    if name == "auto":
        name = next(iter(fitting))
    if name not in fitting:
        raise SettingError(f"attention backend {name!r} does not run on {device}; wanted auto, {', '.join(fitting)}")
    return name, fitting[name].attend
