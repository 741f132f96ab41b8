"""Rows for an engine, and the outputs of transformers' own classes for them: the reference of the parity tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    MegatronBertForMaskedLM,
    MegatronBertForQuestionAnswering,
    MegatronBertForSequenceClassification,
    XLMRobertaForMaskedLM,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
)

from service.domain import Encoding, Mean, Output, Readout, TokenScores
from tests.checkpoints import FIRST_POSITIONS, vocabulary

VOCAB_SIZE = len(vocabulary())
LENGTHS = (1, 2, 3, 17, 17, 17, 64, 100, 255, 256, 511, 512)

_REFERENCES = {
    ("megatron-bert", "masked-lm"): MegatronBertForMaskedLM,
    ("megatron-bert", "sequence-classification"): MegatronBertForSequenceClassification,
    ("megatron-bert", "question-answering"): MegatronBertForQuestionAnswering,
    ("bert", "masked-lm"): BertForMaskedLM,
    ("bert", "sequence-classification"): BertForSequenceClassification,
    ("bert", "question-answering"): BertForQuestionAnswering,
    ("xlm-roberta", "masked-lm"): XLMRobertaForMaskedLM,
    ("xlm-roberta", "sequence-classification"): XLMRobertaForSequenceClassification,
    ("xlm-roberta", "question-answering"): XLMRobertaForQuestionAnswering,
}


@dataclass(frozen=True)
class Reference:
    """A padded, eager forward of transformers' model."""

    hidden: torch.Tensor  # [rows, longest, hidden]
    logits: torch.Tensor  # of a question-answering head [rows, 2, longest]


def load_reference(path: Path, family: str, kind: str) -> torch.nn.Module:
    model = _REFERENCES[family, kind].from_pretrained(path, attn_implementation="eager")
    return model.eval()


@torch.no_grad()
def reference(model: torch.nn.Module, rows: Sequence[Encoding], mask: torch.Tensor | None = None) -> Reference:
    """`mask` is a float [rows, 1, length, length]; without it, padding is masked as usual."""
    longest = max(row.num_tokens for row in rows)
    fields = ("ids", "segment_ids", "positions")
    ids, segments, positions = (
        torch.tensor(np.stack([np.pad(getattr(row, field), (0, longest - row.num_tokens)) for row in rows])).long()
        for field in fields
    )
    padding = torch.arange(longest)[None, :] < torch.tensor([row.num_tokens for row in rows])[:, None]
    out = model(
        input_ids=ids,
        token_type_ids=segments,
        position_ids=positions + FIRST_POSITIONS[model.config.model_type],
        attention_mask=padding.long() if mask is None else mask,
        output_hidden_states=True,
    )
    logits = torch.stack((out.start_logits, out.end_logits), 1) if "start_logits" in out else out.logits
    return Reference(out.hidden_states[-1], logits)


def plain_row(length: int, readout: Readout, seed: int = 0) -> Encoding:
    """Random ids, a first and a second segment, positions from 0 on."""
    random = np.random.default_rng([seed, length])
    ids = random.integers(0, VOCAB_SIZE, length, dtype=np.int32)
    segment_ids = (np.arange(length) > length // 2).astype(np.int32)
    return Encoding("test", ids, segment_ids, np.arange(length, dtype=np.int32), readout)


def choice_row(option_lengths: Sequence[int], rest: int, seed: int = 0, yes_id: int = 5) -> Encoding:
    """A UniMC row from the rules: [CLS], the options' blocks (each [MASK] and its text), then `rest` tokens."""
    random = np.random.default_rng([seed, rest, *option_lengths])
    blocks, end = [], 1
    for length in option_lengths:
        blocks.append((end, end + length))
        end += length
    num_tokens = end + rest
    ids = random.integers(5, VOCAB_SIZE, num_tokens, dtype=np.int32)
    ids[0] = 2
    ids[[start for start, _ in blocks]] = 4
    inside = [np.arange(1, length + 1) for length in option_lengths]
    after = np.minimum(max(option_lengths) + 1 + np.arange(rest), 511)
    positions = np.concatenate([[0], *inside, after]).astype(np.int32)
    segment_ids = np.zeros(num_tokens, dtype=np.int32)
    segment_ids[1 : end + 1] = 1
    readout = TokenScores(tuple(start for start, _ in blocks), (yes_id,))
    return Encoding("test", ids, segment_ids, positions, readout, blocks=tuple(blocks))


def dense_mask(row: Encoding) -> torch.Tensor:
    """The attention mask of one row, computed pair by pair from its blocks: [1, 1, length, length]."""
    mask = torch.zeros(row.num_tokens, row.num_tokens)
    for i in range(row.num_tokens):
        for j in range(row.num_tokens):
            block_i = next((block for block in row.blocks if block[0] <= i < block[1]), None)
            block_j = next((block for block in row.blocks if block[0] <= j < block[1]), None)
            if block_i and block_j and block_i != block_j:
                mask[i, j] = torch.finfo(torch.float32).min
    return mask[None, None]


def mean_rows(lengths: Sequence[int] = LENGTHS) -> list[Encoding]:
    return [plain_row(length, Mean(), seed) for seed, length in enumerate(lengths)]


def max_difference(outputs: Sequence[Output], wanted: Sequence[torch.Tensor]) -> float:
    """The largest absolute difference between the outputs' scores and the wanted ones. Their shapes must be equal."""
    assert [output.scores.shape for output in outputs] == [tuple(each.shape) for each in wanted]
    pairs = zip(outputs, wanted, strict=True)
    return max(float(np.abs(output.scores - each.numpy()).max()) for output, each in pairs)
