"""Rows packed end to end into flat tensors: a batch costs the sum of its tokens, there is no padding.

Knows no model: it checks encodings against limits, orders the rows and moves their ids to the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from service.checkpoint import Shape
from service.domain import Encoding
from service.errors import InferenceFailed


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch as flat tensors.

    The rows are in the order of `rows`: by length, then by blocks, so that rows of one layout lie side by side. Row i
    of the pack is encoding `rows[i]`, and its tokens are `offsets[i]:offsets[i + 1]`.
    """

    encodings: tuple[Encoding, ...]  # in pack order
    rows: tuple[int, ...]
    offsets: tuple[int, ...]
    ids: Tensor  # [tokens] int32, as are the next two
    segment_ids: Tensor
    positions: Tensor
    cu_lengths: Tensor  # `offsets` on the device, for kernels that take rows of varying length

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(each.num_tokens for each in self.encodings)


def pack(encodings: Sequence[Encoding], device: torch.device) -> Packed:
    """Packs at least one row."""
    rows = sorted(range(len(encodings)), key=lambda row: layout(encodings[row]))
    ordered = tuple(encodings[row] for row in rows)
    offsets = (0, *accumulate(each.num_tokens for each in ordered))
    # One buffer, so one copy to the device.
    parts = [each.ids for each in ordered], [each.segment_ids for each in ordered], [each.positions for each in ordered]
    flat = np.stack([np.concatenate(part).astype(np.int32, copy=False) for part in parts])
    ids, segment_ids, positions = to_device(torch.from_numpy(flat), device)
    return Packed(
        encodings=ordered,
        rows=tuple(rows),
        offsets=offsets,
        ids=ids,
        segment_ids=segment_ids,
        positions=positions,
        cu_lengths=to_device(torch.tensor(offsets, dtype=torch.int32), device),
    )


def layout(encoding: Encoding) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Rows of one layout have one length and one mask."""
    return encoding.num_tokens, encoding.blocks


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Pinned memory lets a copy to a GPU run beside its work; on a CPU nothing is copied."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def check(encoding: Encoding, shape: Shape) -> None:
    """InferenceFailed when the row cannot be computed. Tasks never make such rows; a bad index would end in a crash on
    a GPU, and take the whole batch with it."""
    size = encoding.num_tokens
    if not 0 < size <= shape.max_positions:
        raise InferenceFailed(f"a row of {size} tokens; wanted 1 to {shape.max_positions}")
    if not size == len(encoding.segment_ids) == len(encoding.positions):
        raise InferenceFailed("a row whose ids, segment ids and positions differ in length")
    _check_range("token id", encoding.ids, shape.vocab_size)
    _check_range("segment id", encoding.segment_ids, shape.num_segments)
    _check_range("position", encoding.positions, shape.max_positions)
    end = 0
    for block_start, block_end in encoding.blocks:
        if not end <= block_start < block_end <= size:
            raise InferenceFailed("a row whose blocks overlap, are empty, or leave the row")
        end = block_end


def _check_range(what: str, values: np.ndarray[tuple[int, ...], np.dtype[np.int32]], limit: int) -> None:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= limit:
        raise InferenceFailed(f"a {what} of {low if low < 0 else high}; wanted 0 to {limit - 1}")
