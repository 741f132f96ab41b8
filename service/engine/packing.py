"""Packing: rows end to end in flat tensors, so that a batch costs the sum of its tokens; rows are not padded.

Only the batch as a whole is padded, to the next of few sizes (`bucket`): kernels are compiled and cached for one number
of tokens, and reusing one is worth more than the few tokens of padding. See `needs_padding` for the exception.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from service.checkpoints.shape import Shape
from service.domain import Encoding, IdArray
from service.engine.device import to_device
from service.errors import InferenceFailed

Blocks = tuple[tuple[int, int], ...]
Row = tuple[int, Blocks]
"""Length and blocks. Rows with the same length and blocks have the same attention mask."""

Span = tuple[int, int]
"""The first of adjacent tokens and their end."""


def row_of(encoding: Encoding) -> Row:
    """A single block masks nothing, so such a row is a plain one."""
    return encoding.num_tokens, encoding.blocks if len(encoding.blocks) > 1 else ()


@dataclass(frozen=True, slots=True)
class Layout:
    """The rows of a batch, plain ones before those with blocks, followed by the padding."""

    rows: tuple[Row, ...]
    num_tokens: int  # with the padding

    @property
    def offsets(self) -> tuple[int, ...]:
        """The start of each row, and the end of the last one."""
        return (0, *accumulate(length for length, _ in self.rows))

    @property
    def ends(self) -> tuple[int, ...]:
        """As `offsets`, with the padding as one more row, so that every token is in a row."""
        offsets = self.offsets
        return offsets if offsets[-1] == self.num_tokens else (*offsets, self.num_tokens)

    @property
    def num_plain(self) -> int:
        return sum(not blocks for _, blocks in self.rows)

    def split(self) -> tuple[Layout, Layout]:
        """The plain rows, and those with blocks. The padding is in the second part, unless it has no rows."""
        plain, masked = self.rows[: self.num_plain], self.rows[self.num_plain :]
        num_tokens = sum(length for length, _ in plain) if masked else self.num_tokens
        return Layout(plain, num_tokens), Layout(masked, self.num_tokens - num_tokens)

    def owners(self, num_tokens: int) -> IdArray:
        """[2, num_tokens]: the row of each token, and its block in that row: from 1 on, 0 outside of all blocks.

        `num_tokens` may exceed that of the layout. The padding is a row of its own.
        """
        owners = np.zeros((2, num_tokens), dtype=np.int32)
        offsets = self.offsets
        owners[0, : offsets[-1]] = np.repeat(np.arange(len(self.rows)), np.diff(offsets))
        owners[0, offsets[-1] :] = len(self.rows)
        for start, (_, blocks) in zip(offsets, self.rows, strict=False):
            for number, (first, end) in enumerate(blocks, start=1):
                owners[1, start + first : start + end] = number
        return owners


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch as flat tensors.

    Plain rows come before those with blocks, then rows are sorted by length and blocks, so that rows with the same mask
    are adjacent. Packed row i is encoding `rows[i]` of the batch, and its tokens are `offsets[i]:offsets[i + 1]`. The
    padding comes last: no row attends to it, and it is never read.

    Only the `selected` tokens are read, those of row i at `spans[i]` of them; None stands for all tokens. On a GPU,
    their number is padded, too.
    """

    encodings: tuple[Encoding, ...]  # in packed order
    rows: tuple[int, ...]
    offsets: tuple[int, ...]
    tokens: Tensor  # [3, tokens with the padding] int32: ids, segment ids, positions
    layout: Layout
    selected: Tensor | None  # [selected tokens with their padding] int32
    spans: tuple[Span, ...]


LARGE_HIDDEN_SIZE = 2048
"""On a CPU a kernel is compiled in about a millisecond, and where maps are as wide as this, padding takes longer: with
AVX2, single rows took 1.09 times as long with the 1.3B shape, 1.03 with 110M (768 wide), and 0.98 with a small one."""


def needs_padding(shape: Shape, device: torch.device) -> bool:
    """Whether batches are padded. On a GPU they always are: CUDA graphs and some kernels need it."""
    return device.type != "cpu" or shape.hidden_size < LARGE_HIDDEN_SIZE


def pack(encodings: Sequence[Encoding], device: torch.device, *, is_padded: bool = True) -> Packed:
    """Packs at least one row. `is_padded` is what `needs_padding` says of the model."""
    layouts = [row_of(encoding) for encoding in encodings]
    rows = sorted(range(len(encodings)), key=lambda row: (bool(layouts[row][1]), layouts[row]))
    ordered = tuple(encodings[row] for row in rows)
    num_tokens = sum(each.num_tokens for each in ordered)
    layout = Layout(tuple(layouts[row] for row in rows), bucket(num_tokens) if is_padded else num_tokens)
    offsets = layout.offsets
    selected, spans = _select(ordered, offsets, is_padded=device.type != "cpu")
    # One buffer needs one copy to the device.
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
        selected=None if selected is None else to_device(torch.from_numpy(selected), device),
        spans=spans,
    )


def _select(
    encodings: Sequence[Encoding], offsets: Sequence[int], *, is_padded: bool
) -> tuple[IdArray | None, tuple[Span, ...]]:
    """`selected` and `spans` of the batch."""
    tokens = [each.readout.selected(each.num_tokens) for each in encodings]
    ends = (0, *accumulate(map(len, tokens)))
    spans = tuple(pairwise(ends))
    if all(some == range(each.num_tokens) for some, each in zip(tokens, encodings, strict=True)):
        return None, spans
    selected = np.zeros(bucket(ends[-1]) if is_padded else ends[-1], dtype=np.int32)
    for (start, end), first, some in zip(spans, offsets, tokens, strict=False):
        selected[start:end] = first + np.asarray(some, dtype=np.int32)
    return selected, spans


def bucket(num_tokens: int) -> int:
    """The next multiple of 8, or of a 32nd of the next lower power of two: at most 3 % more for large batches."""
    step = max(8, 1 << max(0, num_tokens.bit_length() - 6))
    return -(-num_tokens // step) * step


def check(encoding: Encoding, shape: Shape) -> None:
    """InferenceFailed when the row cannot be computed. Tasks never create such rows; on a GPU, an index out of range
    would crash the process and fail the whole batch."""
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


def _check_range(what: str, values: IdArray, limit: int) -> None:
    if np.maximum.reduce(values.view(np.uint32)) < limit:  # where a negative number is larger than all others
        return
    low, high = int(values.min()), int(values.max())
    raise InferenceFailed(f"a {what} of {low if low < 0 else high}; wanted 0 to {limit - 1}")
