"""Rows side by side, for an attention that wants them padded: in a few groups of rows of about the same length."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from service.engine.attention_backends import block_mask
from service.engine.packing import Layout, Row
from service.engine.self_test import CPU

Array = NDArray[Any]

NUM_GROUPS = 4
"""Of rows that are laid out to the same length for the attention. With 8 groups a batch of 16 rows is no faster."""
_PLACE_COST = 64
"""What a place in a group costs apart from its scores, in scores."""


def lay_out(layout: Layout, selected: Array) -> dict[str, Array]:
    """The inputs of an attention, by name.

    For each group of rows, their `tokens` and what is `added` to their scores, and the `places` of all tokens in these
    groups; of a single row only what is `added`. The `last` layer has some of its own, of the selected tokens.
    """
    rows, offsets = layout.rows, np.array(layout.offsets)
    if len(rows) == 1:
        added = _added(rows, rows[0][0])
        return _NO_GROUPS | {"added0": added, "last_added0": added[:, :, selected]}
    inputs = _NO_GROUPS | {"is_single": np.array(False)}
    owners = np.searchsorted(offsets, selected, side="right") - 1
    last_offsets = np.searchsorted(owners, np.arange(len(rows) + 1))
    places, last_places = _Places(), _Places()
    for group, (start, end) in enumerate(pairwise(group_rows([length for length, _ in rows]))):
        tokens, _ = places.add(offsets[start : end + 1])
        last_tokens, is_token = last_places.add(last_offsets[start : end + 1])
        added = _added(rows[start:end], tokens.shape[1])
        queries = np.where(is_token, selected[last_tokens] - offsets[start:end, None], 0)
        inputs |= {f"tokens{group}": tokens, f"last_tokens{group}": last_tokens}
        last_added = np.take_along_axis(added, queries[:, None, :, None], 2)
        inputs |= {f"added{group}": added, f"last_added{group}": last_added}
    return inputs | {"places": places.of_tokens, "last_places": last_places.of_tokens}


class _Places:
    """Where the tokens are when rows are laid out in groups."""

    def __init__(self) -> None:
        self._found: list[Array] = []
        self._num_places = 0

    def add(self, offsets: Array) -> tuple[Array, NDArray[np.bool_]]:
        """The tokens of the next group [rows, longest], from the bounds of its rows, and which of them are no padding.

        The padding is the first token of the batch.
        """
        index = np.arange(max(1, np.diff(offsets).max()))
        is_token = index < np.diff(offsets)[:, None]
        self._found.append(self._num_places + np.flatnonzero(is_token))
        self._num_places += is_token.size
        return np.where(is_token, offsets[:-1, None] + index, 0).astype(np.int32), is_token

    @property
    def of_tokens(self) -> Array:
        return np.concatenate(self._found).astype(np.int32)


_NO_GROUPS: dict[str, Array] = {
    "is_single": np.array(True),
    "places": np.zeros(1, dtype=np.int32),
    **{f"tokens{group}": np.zeros((1, 1), dtype=np.int32) for group in range(NUM_GROUPS)},
    **{f"added{group}": np.zeros((1, 1, 1, 1), dtype=np.float32) for group in range(NUM_GROUPS)},
}
_NO_GROUPS |= {f"last_{name}": array for name, array in _NO_GROUPS.items() if name != "is_single"}
"""The inputs of groups that have no rows: they have one place all the same, behind those of the rows."""


def _added(rows: Sequence[Row], longest: int) -> Array:
    """Added to the scores [rows, 1, longest, longest]: masks the places behind a row, and blocks from each other."""
    added = np.zeros((len(rows), 1, longest, longest), dtype=np.float32)
    for [scores], (length, blocks) in zip(added, rows, strict=True):
        scores[:, length:] = -np.inf
        if (mask := block_mask(length, blocks, CPU, torch.float32)) is not None:
            scores[:length, :length] = mask
    return added


def group_rows(lengths: Sequence[int]) -> list[int]:
    """The bounds of the groups: of at most NUM_GROUPS runs of rows, those that cost least, each padded to its longest.

    A group of rows from `bounds[i]` to `bounds[i + 1]`. There are fewer groups where more would save nothing.
    """
    num_rows = len(lengths)
    costs = np.full((num_rows + 1, num_rows + 1), np.inf)  # of the group from a row to another
    np.fill_diagonal(costs, 0)
    for start in range(num_rows):
        longest = np.maximum.accumulate(lengths[start:])
        costs[start, start + 1 :] = np.arange(1, num_rows - start + 1) * longest * (longest + _PLACE_COST)
    total, starts = costs[0], []
    for _ in range(NUM_GROUPS - 1):
        with_last = total[:, None] + costs
        starts.append(with_last.argmin(axis=0))
        total = with_last.min(axis=0)
    bounds = [num_rows]
    for start in reversed(starts):
        bounds.append(int(start[bounds[-1]]))
    return sorted({0, *bounds})
