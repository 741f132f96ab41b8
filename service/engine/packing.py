"""Rows packed end to end into flat tensors: a batch costs the sum of its tokens, rows are not padded to the longest.

Only the pack as a whole is filled up, to the next of few sizes (`bucket`): kernels are made and kept for one number of
tokens, and a kernel that is there already is worth more than the few tokens. Knows no model: it checks encodings
against limits, orders the rows and moves their ids to the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from service.checkpoints.checkpoint import Shape
from service.domain import Encoding, IdArray
from service.engine.device import to_device
from service.errors import InferenceFailed

Blocks = tuple[tuple[int, int], ...]
Row = tuple[int, Blocks]
"""Length and blocks. Rows of which these are equal have one shape and one mask."""


def row_of(encoding: Encoding) -> Row:
    """A single block hides nothing, so such a row is a plain one."""
    return encoding.num_tokens, encoding.blocks if len(encoding.blocks) > 1 else ()


@dataclass(frozen=True, slots=True)
class Layout:
    """Rows that lie side by side, plain ones before those with blocks, and after them what fills the bucket."""

    rows: tuple[Row, ...]
    num_tokens: int  # with the filling

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each row starts, and where the last one ends."""
        return (0, *accumulate(length for length, _ in self.rows))

    @property
    def ends(self) -> tuple[int, ...]:
        """As offsets, with the filling as one more row: every token is in a row then."""
        offsets = self.offsets
        return offsets if offsets[-1] == self.num_tokens else (*offsets, self.num_tokens)

    @property
    def num_plain(self) -> int:
        return sum(not blocks for _, blocks in self.rows)

    def split(self) -> tuple[Layout, Layout]:
        """The plain rows, and the others with the filling; the filling stays with the plain ones if these are all."""
        plain, masked = self.rows[: self.num_plain], self.rows[self.num_plain :]
        num_tokens = sum(length for length, _ in plain) if masked else self.num_tokens
        return Layout(plain, num_tokens), Layout(masked, self.num_tokens - num_tokens)

    def owners(self, num_tokens: int) -> IdArray:
        """[2, num_tokens]: the row of each token, and its block in there from 1 on, 0 outside of blocks.

        `num_tokens` may be more than there are here; the filling counts as a row of its own.
        """
        owners = np.zeros((2, num_tokens), dtype=np.int32)
        owners[0] = len(self.rows)
        for index, (start, (length, blocks)) in enumerate(zip(self.offsets, self.rows, strict=False)):
            owners[0, start : start + length] = index
            for number, (first, end) in enumerate(blocks, start=1):
                owners[1, start + first : start + end] = number
        return owners


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch as flat tensors.

    The rows are in the order of `rows`: plain ones before those with blocks, then by length and blocks, so that rows of
    one mask lie side by side. Row i of the pack is encoding `rows[i]`, and its tokens are `offsets[i]:offsets[i + 1]`.
    What comes after the last of them fills the bucket: no row attends to it, and it is never read.
    """

    encodings: tuple[Encoding, ...]  # in pack order
    rows: tuple[int, ...]
    offsets: tuple[int, ...]
    tokens: Tensor  # [3, tokens with the filling] int32: ids, segment ids, positions
    layout: Layout


def pack(encodings: Sequence[Encoding], device: torch.device) -> Packed:
    """Packs at least one row."""
    layouts = [row_of(encoding) for encoding in encodings]
    rows = sorted(range(len(encodings)), key=lambda row: (bool(layouts[row][1]), layouts[row]))
    ordered = tuple(encodings[row] for row in rows)
    layout = Layout(tuple(layouts[row] for row in rows), bucket(sum(each.num_tokens for each in ordered)))
    offsets = layout.offsets
    # One buffer, so one copy to the device.
    flat = np.zeros((3, layout.num_tokens), dtype=np.int32)
    parts = [each.ids for each in ordered], [each.segment_ids for each in ordered], [each.positions for each in ordered]
    for line, part in zip(flat, parts, strict=True):
        np.concatenate(part, out=line[: offsets[-1]])
    return Packed(
        encodings=ordered,
        rows=tuple(rows),
        offsets=offsets,
        tokens=to_device(torch.from_numpy(flat), device),
        layout=layout,
    )


def bucket(num_tokens: int) -> int:
    """The next multiple of 8, or of a 32nd of the power of two below: at most 3 % more for large packs."""
    step = max(8, 1 << max(0, num_tokens.bit_length() - 6))
    return -(-num_tokens // step) * step


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
