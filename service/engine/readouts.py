"""Heads: what is read from the hidden states of packed rows, one reader per kind of readout.

Logits, means and softmax are computed in float32 whatever the precision of the weights is. A head runs only on the
tokens it is asked for. A reader gives the device its work and returns at once; what it returns makes the outputs, when
the numbers have come from the device. Knows no tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from service.checkpoints.checkpoint import Shape
from service.domain import Cls, Encoding, Labels, Mean, Output, TokenScores, TopTokens
from service.engine.device import to_device, to_host
from service.engine.encoder import gelu_of
from service.engine.packing import Packed
from service.engine.weights import MlmHead, Weights
from service.errors import InferenceFailed

_MAX_POSITIONS = 512  # full-vocabulary logits computed at a time: 512 x 21k x 4 bytes = 43 MB
_MAX_TOKENS = 4096  # decoder rows in float32 at a time: 4096 x 2048 x 4 bytes = 34 MB


Finish = Callable[[], list[Output]]
"""Makes outputs of numbers that have come from the device."""

Span = tuple[int, int]
"""The first token of a row and the one behind its last."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """The rows of one readout kind: the hidden states of all rows, and where these ones lie."""

    weights: Weights
    shape: Shape
    hidden: Tensor  # [tokens, hidden]
    readouts: tuple[Any, ...]
    spans: tuple[Span, ...]

    def at(self, tokens: Sequence[int]) -> Tensor:
        """The hidden states of the tokens, [len(tokens), hidden]."""
        return self.hidden[to_device(torch.tensor(tokens, dtype=torch.int64), self.hidden.device)]


def read(weights: Weights, shape: Shape, hidden: Tensor, packed: Packed) -> Finish:
    """The output of every row, in the order in which the encodings came: behind a `fence` made after this."""
    parts: list[tuple[list[int], Finish]] = []
    for kind, reader in _READERS.items():
        members = [index for index, each in enumerate(packed.encodings) if isinstance(each.readout, kind)]
        if not members:
            continue
        readouts = tuple(packed.encodings[index].readout for index in members)
        spans = tuple((packed.offsets[index], packed.offsets[index + 1]) for index in members)
        finish = reader(_Batch(weights, shape, hidden, readouts, spans))
        parts.append(([packed.rows[index] for index in members], finish))

    def outputs() -> list[Output]:
        by_row = {row: output for rows, finish in parts for row, output in zip(rows, finish(), strict=True)}
        return [by_row[row] for row in range(len(packed.rows))]

    return outputs


def check(encoding: Encoding, shape: Shape, weights: Weights) -> None:
    """InferenceFailed when the readout asks for what the checkpoint or the row has not."""
    readout = encoding.readout
    if isinstance(readout, Labels) and not weights.labels:
        raise InferenceFailed("the checkpoint has no sequence-classification head")
    if not isinstance(readout, TokenScores | TopTokens):
        return
    if not weights.mlm:
        raise InferenceFailed("the checkpoint has no masked-LM head")
    if not all(0 <= position < encoding.num_tokens for position in readout.positions):
        raise InferenceFailed(f"a readout outside of its row of {encoding.num_tokens} tokens")
    if isinstance(readout, TopTokens) and not 0 < readout.k <= shape.vocab_size:
        raise InferenceFailed(f"the {readout.k} best tokens asked for; wanted 1 to {shape.vocab_size}")
    if isinstance(readout, TokenScores) and not all(0 <= each < shape.vocab_size for each in readout.token_ids):
        raise InferenceFailed(f"scores of a token out of the vocabulary asked for; wanted 0 to {shape.vocab_size - 1}")


def _read_cls(batch: _Batch) -> Finish:
    return _one_row_each(batch.at([start for start, _ in batch.spans]).float())


def _read_mean(batch: _Batch) -> Finish:
    means = means_at_once if batch.hidden.is_cuda else means_in_turn
    return _one_row_each(means(batch.hidden, batch.spans))


def means_in_turn(hidden: Tensor, spans: Sequence[Span]) -> Tensor:
    """The mean of each span of tokens, [spans, hidden] in float32. On a CPU a call costs little, and a copy much."""
    return torch.stack([hidden[start:end].mean(0, dtype=torch.float32) for start, end in spans])


def means_at_once(hidden: Tensor, spans: Sequence[Span]) -> Tensor:
    """The same in one kernel, whatever the number of spans: a GPU would wait for the launch of each. It sums one token
    after the other, so the numbers are the same every time, and those of a span depend on no other."""
    starts, ends = np.array(spans).T
    firsts = np.cumsum(ends - starts) - (ends - starts)  # where each span starts when they lie side by side
    tokens = np.arange(firsts[-1] + ends[-1] - starts[-1]) + np.repeat(starts - firsts, ends - starts)
    which, where = (to_device(torch.from_numpy(each), hidden.device) for each in (tokens, firsts))
    return F.embedding_bag(which, hidden.float(), where, mode="mean")


def _read_labels(batch: _Batch) -> Finish:
    head = batch.weights.labels
    assert head
    pooled = torch.tanh(head.pooler(batch.at([start for start, _ in batch.spans])).float())
    return _one_row_each(F.linear(pooled, head.classifier.weight.float(), head.classifier.bias.float()))


def _read_token_scores(batch: _Batch) -> Finish:
    """Only the decoder rows of the wanted tokens are used; rows that want the same tokens share them."""
    head, states = _mlm_states(batch)
    counts = [len(readout.positions) for readout in batch.readouts]
    wanted: dict[tuple[int, ...], list[int]] = {}
    for row, readout in enumerate(batch.readouts):
        wanted.setdefault(readout.token_ids, []).append(row)
    logits: list[tuple[list[int], Tensor]] = []
    for token_ids, rows in wanted.items():
        tokens = to_device(torch.tensor(token_ids, dtype=torch.int64), states.device)
        logits.append((rows, to_host(_logits(_of_rows(states, counts, rows), head, tokens))))

    def outputs() -> list[Output]:
        by_row: dict[int, Output] = {}
        for rows, host in logits:
            scores = np.split(host.numpy(), np.cumsum([counts[row] for row in rows])[:-1])
            by_row |= {row: Output(each) for row, each in zip(rows, scores, strict=True)}
        return [by_row[row] for row in range(len(counts))]

    return outputs


def _of_rows(states: Tensor, counts: Sequence[int], rows: Sequence[int]) -> Tensor:
    """Of states that lie row after row, so many of each, those of these rows."""
    if len(rows) == len(counts):
        return states  # nearly always: choices of one model all ask for the same tokens
    parts = torch.split(states, list(counts))
    return torch.cat([parts[row] for row in rows])


def _read_top_tokens(batch: _Batch) -> Finish:
    head, states = _mlm_states(batch)
    k = max(readout.k for readout in batch.readouts)
    best = [_top(part, head, k) for part in torch.split(states, _MAX_POSITIONS)]
    scores = to_host(torch.cat([each[0] for each in best]))
    ids = to_host(torch.cat([each[1] for each in best]).to(torch.int32))
    readouts = batch.readouts  # and not the batch, whose hidden states would be kept until the outputs are wanted
    ends = np.cumsum([len(readout.positions) for readout in readouts])[:-1]

    def outputs() -> list[Output]:
        parts = zip(readouts, np.split(scores.numpy(), ends), np.split(ids.numpy(), ends), strict=True)
        return [Output(row_scores[:, : readout.k], row_ids[:, : readout.k]) for readout, row_scores, row_ids in parts]

    return outputs


_READERS: dict[type, Callable[[_Batch], Finish]] = {
    Cls: _read_cls,
    Mean: _read_mean,
    Labels: _read_labels,
    TokenScores: _read_token_scores,
    TopTokens: _read_top_tokens,
}


def _mlm_states(batch: _Batch) -> tuple[MlmHead, Tensor]:
    """The transformed hidden states at all wanted positions, row after row, in float32: [positions, hidden]."""
    head = batch.weights.mlm
    assert head
    pairs = zip(batch.readouts, batch.spans, strict=True)
    tokens = [start + position for readout, (start, _) in pairs for position in readout.positions]
    states = head.transform.gelu(batch.at(tokens), gelu_of(batch.shape))
    return head, head.norm(states).float()


def _top(states: Tensor, head: MlmHead, k: int) -> tuple[Tensor, Tensor]:
    logits = torch.cat([_logits(states, head, tokens) for tokens in _slices(len(head.decoder.bias))], dim=1)
    best = logits.softmax(dim=1).topk(k, dim=1)
    return best.values, best.indices


def _slices(num_tokens: int) -> Iterator[slice]:
    return (slice(start, start + _MAX_TOKENS) for start in range(0, num_tokens, _MAX_TOKENS))


def _logits(states: Tensor, head: MlmHead, tokens: Tensor | slice) -> Tensor:
    """In float32 even where the weights are bfloat16, whose 8 bits would tie tokens that differ."""
    return F.linear(states, head.decoder.weight[tokens].float(), head.decoder.bias[tokens].float())


def _one_row_each(scores: Tensor) -> Finish:
    host = to_host(scores)
    return lambda: [Output(row) for row in host.numpy()[:, None, :]]
