"""Where the rows of a pack lie and which tokens of them see each other: all that attention must know of a batch.

Knows no ids and no device; the two arrays that it makes are moved by whoever asks for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from service.domain import Encoding, IdArray

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
