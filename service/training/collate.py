"""Pads rows into the tensors that transformers' models take, and scores them: the torch side of training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from service.domain import Encoding, TokenScores
from service.training.stream import IGNORED, Row

Batch = dict[str, Tensor]
HIDDEN = -1e9


def collate(rows: Sequence[Row]) -> Batch:
    """Model inputs [rows, length], the 4-D additive attention mask, and targets for choice and masked tokens."""
    length = max(row.encoding.num_tokens for row in rows)
    num_options = max((len(row.encoding.blocks) for row in rows), default=0)
    batch: Batch = {
        "input_ids": _padded([row.encoding.ids for row in rows], length),
        "token_type_ids": _padded([row.encoding.segment_ids for row in rows], length),
        "position_ids": _padded([row.encoding.positions for row in rows], length),
        "attention_mask": attention_mask([row.encoding for row in rows], length),
        "answers": torch.tensor([row.answer for row in rows]),
        "option_positions": torch.zeros(len(rows), max(num_options, 1), dtype=torch.long),
        "option_counts": torch.tensor([len(row.encoding.blocks) for row in rows]),
        "masked_rows": torch.tensor([index for index, row in enumerate(rows) for _ in row.masked], dtype=torch.long),
        "masked_positions": torch.tensor([position for row in rows for position, _ in row.masked], dtype=torch.long),
        "masked_ids": torch.tensor([token for row in rows for _, token in row.masked], dtype=torch.long),
    }
    for index, row in enumerate(rows):
        if isinstance(row.encoding.readout, TokenScores):
            positions = row.encoding.readout.positions
            batch["option_positions"][index, : len(positions)] = torch.tensor(positions)
    return batch


def attention_mask(encodings: Sequence[Encoding], length: int) -> Tensor:
    """[rows, 1, length, length]: 0 where a token may look, a large negative number where not."""
    mask = np.full((len(encodings), 1, length, length), HIDDEN, dtype=np.float32)
    for index, encoding in enumerate(encodings):
        mask[index, 0, :, : encoding.num_tokens] = 0.0
        if encoding.blocks:
            first, last = encoding.blocks[0][0], encoding.blocks[-1][1]
            mask[index, 0, first:last, first:last] = HIDDEN
        for start, end in encoding.blocks:
            mask[index, 0, start:end, start:end] = 0.0
    return torch.from_numpy(mask)


def choice_loss(yes_no: Tensor, batch: Batch) -> Tensor:
    """Cross entropy over the options plus, for every option alone, yes against no.

    Args:
        yes_no: [rows, options, 2], logits of yes and no at the options' masks.
    """
    options = torch.arange(yes_no.shape[1], device=yes_no.device)
    present = options < batch["option_counts"][:, None]
    yes = yes_no[..., 0].masked_fill(~present, HIDDEN)
    chosen = functional.cross_entropy(yes, batch["answers"], ignore_index=IGNORED)
    is_answer = (options == batch["answers"][:, None]).float()
    each = functional.binary_cross_entropy_with_logits(yes_no[..., 0] - yes_no[..., 1], is_answer, reduction="none")
    alone = (each * present).sum() / present.sum().clamp(min=1)
    return chosen + 0.5 * alone


def _padded(arrays: Sequence[np.ndarray[tuple[int], np.dtype[np.int32]]], length: int) -> Tensor:
    padded = np.zeros((len(arrays), length), dtype=np.int64)
    for index, array in enumerate(arrays):
        padded[index, : len(array)] = array
    return torch.from_numpy(padded)
