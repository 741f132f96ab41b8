"""Readouts: reads the outputs of rows from the hidden states, one reader per kind of readout.

Logits, means and softmax are computed in float32 for every precision of the weights. A head runs only on the tokens
that the readouts select. A reader launches its work on the device and returns at once; the function that it returns
builds the outputs after the numbers have arrived on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from numpy.typing import NDArray
from torch import Tensor

from service.checkpoints.shape import Shape
from service.domain import (
    Cls,
    Encoding,
    FloatArray,
    Labels,
    Mean,
    Output,
    Pooled,
    PoolingMode,
    Readout,
    Spans,
    TokenScores,
    TopTokens,
)
from service.engine.device import to_device, to_host
from service.engine.encoder import gelu_of
from service.engine.packing import Packed, Span
from service.engine.weights import DenseLayer, MlmHead, Weights
from service.errors import InferenceFailed

_MAX_POSITIONS = 512  # full-vocabulary logits computed at a time: 512 x 21k x 4 bytes = 43 MB
_MAX_TOKENS = 4096  # decoder rows, or states of tokens, in float32 at a time: 4096 x 2048 x 4 bytes = 34 MB


Pending = Callable[[], list[Output]]
"""Builds the outputs; call it after the device has finished."""

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Batch:
    """The rows of one kind of readout, and where their selected tokens are among those of all rows of the batch."""

    weights: Weights
    shape: Shape
    hidden: Tensor  # [selected tokens, hidden]
    readouts: tuple[Any, ...]
    spans: tuple[Span, ...]

    @property
    def states(self) -> Tensor:
        """The hidden states of the selected tokens of these rows, row after row."""
        start, end = self.spans[0][0], self.spans[-1][1]
        if sum(end - start for start, end in self.spans) == end - start:
            return self.hidden[start:end]
        tokens = np.concatenate([np.arange(*span) for span in self.spans])
        return self.hidden[to_device(torch.from_numpy(tokens), self.hidden.device)]


def read(weights: Weights, shape: Shape, hidden: Tensor, packed: Packed) -> Pending:
    """The outputs of all rows in the order of the encodings, after a `wait_event` that is made after this call."""
    parts: list[tuple[list[int], Pending]] = []
    for kind, reader in _READERS.items():
        members = [index for index, each in enumerate(packed.encodings) if isinstance(each.readout, kind)]
        if not members:
            continue
        readouts = tuple(packed.encodings[index].readout for index in members)
        spans = tuple(packed.spans[index] for index in members)
        pending = reader(_Batch(weights, shape, hidden, readouts, spans))
        parts.append(([packed.rows[index] for index in members], pending))

    def outputs() -> list[Output]:
        by_row = {row: output for rows, pending in parts for row, output in zip(rows, pending(), strict=True)}
        return [by_row[row] for row in range(len(packed.rows))]

    return outputs


Shared = Labels | Mean | TokenScores
"""Readouts that some encoders compute beside the hidden states."""


def shared_readout(encodings: Sequence[Encoding]) -> Shared | None:
    """The readout that is computed for a whole batch at once: of a label head, of the same tokens for every row, or the
    mean of its only row."""
    first = encodings[0].readout
    if isinstance(first, Labels) and all(isinstance(each.readout, Labels) for each in encodings):
        return first
    if isinstance(first, TokenScores) and all(_reads(each.readout, first.token_ids) for each in encodings):
        return first
    is_mean = isinstance(first, Mean) or (
        isinstance(first, Pooled) and first.modes == ("mean",) and not first.is_projected
    )
    return Mean() if is_mean and len(encodings) == 1 else None


def _reads(readout: Readout, token_ids: Sequence[int]) -> bool:
    return isinstance(readout, TokenScores) and readout.token_ids == token_ids


def cut(scores: Tensor, packed: Packed) -> list[Output]:
    """The outputs of all rows in the order of the encodings, of what a shared readout gives, on the host."""
    array = scores.numpy()
    by_row = {row: Output(array[start:end]) for row, (start, end) in zip(packed.rows, packed.spans, strict=True)}
    return [by_row[row] for row in range(len(packed.rows))]


def check(encoding: Encoding, shape: Shape, weights: Weights) -> None:
    """InferenceFailed when the checkpoint has no head for the readout, or the readout is out of range."""
    readout = encoding.readout
    if isinstance(readout, Labels) and not weights.labels:
        raise InferenceFailed("the checkpoint has no sequence-classification head")
    if isinstance(readout, Pooled):
        _check_pooled(readout, encoding.num_tokens, shape, weights)
    if isinstance(readout, Spans) and not weights.spans:
        raise InferenceFailed("the checkpoint has no question-answering head")
    if not isinstance(readout, TokenScores | TopTokens):
        return
    if not weights.mlm:
        raise InferenceFailed("the checkpoint has no masked-LM head")
    if not all(0 <= position < encoding.num_tokens for position in readout.positions):
        raise InferenceFailed(f"a readout outside of its row of {encoding.num_tokens} tokens")
    if isinstance(readout, TopTokens) and not 0 < readout.k <= shape.vocab_size:
        raise InferenceFailed(f"a readout of the {readout.k} best tokens; wanted 1 to {shape.vocab_size}")
    if isinstance(readout, TokenScores) and not all(0 <= each < shape.vocab_size for each in readout.token_ids):
        raise InferenceFailed(f"a readout of a token id outside of the vocabulary; wanted 0 to {shape.vocab_size - 1}")


def _read_cls(batch: _Batch) -> Pending:
    return _one_row_each(batch.states.float())


def _read_mean(batch: _Batch) -> Pending:
    return _one_row_each(_means(batch.hidden, batch.spans))


def _means(hidden: Tensor, spans: Sequence[Span]) -> Tensor:
    return (means_at_once if hidden.is_cuda else means_in_turn)(hidden, spans)


def means_in_turn(hidden: Tensor, spans: Sequence[Span]) -> Tensor:
    """The mean of each span of tokens, float32 [spans, hidden]. For a CPU, where a call is cheap and a copy of all
    states is not. One of numpy takes half the time of one of torch."""
    means = np.empty((len(spans), hidden.shape[1]), dtype=np.float32)
    for mean, (start, end) in zip(means, spans, strict=True):
        np.add.reduce(hidden[start:end].float().numpy(), axis=0, out=mean)
        mean /= end - start
    return torch.from_numpy(means)


def means_at_once(hidden: Tensor, spans: Sequence[Span]) -> Tensor:
    """The same in one kernel, because a GPU would wait for the launch of each.

    It sums the tokens in order, so the result of a span is deterministic and does not depend on other spans.
    """
    starts, ends = np.array(spans).T
    firsts = np.cumsum(ends - starts) - (ends - starts)  # the start of each span when they are adjacent
    tokens = np.arange(firsts[-1] + ends[-1] - starts[-1]) + np.repeat(starts - firsts, ends - starts)
    which, where = (to_device(torch.from_numpy(each), hidden.device) for each in (tokens, firsts))
    return F.embedding_bag(which, hidden.float(), where, mode="mean")


def _check_pooled(readout: Pooled, num_tokens: int, shape: Shape, weights: Weights) -> None:
    if not readout.modes or not 0 <= readout.num_skipped < num_tokens:
        raise InferenceFailed(f"a readout of no pooling, or outside of its row of {num_tokens} tokens")
    size = len(readout.modes) * shape.hidden_size
    if readout.is_projected and (not weights.dense or weights.dense[0].weight.shape[1] != size):
        raise InferenceFailed(f"the checkpoint has no dense layer for a vector of {size} numbers")


def _read_pooled(batch: _Batch) -> Pending:
    """Rows with the same modes are computed together."""
    wanted: dict[tuple[tuple[PoolingMode, ...], bool], list[int]] = {}
    for row, readout in enumerate(batch.readouts):
        wanted.setdefault((readout.modes, readout.is_projected), []).append(row)
    vectors: list[tuple[list[int], Tensor]] = []
    for (modes, is_projected), rows in wanted.items():
        spans = [batch.spans[row] for row in rows]
        skipped = [batch.readouts[row].num_skipped for row in rows]
        pooled = torch.cat([pool(batch.hidden, spans, mode, skipped) for mode in modes], dim=1)
        vectors.append((rows, to_host(_project(pooled, batch.weights.dense) if is_projected else pooled)))

    def outputs() -> list[Output]:
        by_row = {row: each for rows, host in vectors for row, each in zip(rows, host.numpy(), strict=True)}
        return [Output(by_row[row][None]) for row in range(len(batch.spans))]

    return outputs


def pool(hidden: Tensor, spans: Sequence[Span], mode: PoolingMode, skipped: Sequence[int]) -> Tensor:
    """The pooled vector of each span of tokens, float32 [spans, hidden]; `skipped` tokens of its row are before it.

    The result of a span does not depend on other spans. Source: `Pooling` of sentence-transformers.
    """
    if mode == "mean":
        return _means(hidden, spans)
    starts, ends = np.array(spans).T
    if mode in ("cls", "lasttoken"):
        tokens = starts.copy() if mode == "cls" else ends - 1
        return hidden[to_device(torch.from_numpy(tokens), hidden.device)].float()
    lengths = ends - starts
    where = np.cumsum(lengths) - lengths
    index = np.arange(lengths.sum()) - np.repeat(where, lengths)  # of each token in what is pooled of its span
    which, offsets = (
        to_device(torch.from_numpy(each), hidden.device) for each in (index + np.repeat(starts, lengths), where)
    )
    states = hidden.float()
    if mode == "max":
        return F.embedding_bag(which, states, offsets, mode="max")
    weights = to_device(torch.from_numpy(_weights(mode, index, lengths, np.array(skipped))), hidden.device)
    return F.embedding_bag(which, states, offsets, mode="sum", per_sample_weights=weights)


def _weights(mode: PoolingMode, index: IntArray, lengths: IntArray, skipped: IntArray) -> FloatArray:
    """What each token counts in the sum of its span."""
    if mode == "weightedmean":  # a token keeps its place in the whole row
        place = (index + np.repeat(skipped, lengths) + 1).astype(np.float64)
        total = np.add.reduceat(place, np.cumsum(lengths) - lengths)
        return np.asarray(place / np.repeat(total, lengths), dtype=np.float32)
    return np.asarray(1 / np.sqrt(np.repeat(lengths, lengths)), dtype=np.float32)


def _project(vectors: Tensor, layers: Sequence[DenseLayer]) -> Tensor:
    for layer in layers:
        out = layer.activation(F.linear(vectors, layer.weight, layer.bias))
        if layer.is_residual:
            out = out + (vectors if layer.shortcut is None else F.linear(vectors, layer.shortcut))
        vectors = out
    return vectors


def _read_labels(batch: _Batch) -> Pending:
    head = batch.weights.labels
    assert head
    pooled = torch.tanh(head.pooler(batch.states).float())
    return _one_row_each(F.linear(pooled, head.classifier.weight.float(), head.classifier.bias.float()))


def _read_spans(batch: _Batch) -> Pending:
    head = batch.weights.spans
    assert head
    weight, bias = head.weight.float(), head.bias.float()
    parts = [F.linear(part.float(), weight, bias) for part in torch.split(batch.states, _MAX_TOKENS)]
    host = to_host(torch.cat(parts).T.contiguous())
    ends = np.cumsum([end - start for start, end in batch.spans])[:-1]
    return lambda: [Output(logits) for logits in np.split(host.numpy(), ends, axis=1)]


def _read_token_scores(batch: _Batch) -> Pending:
    """Uses the decoder rows of the named tokens only; rows with the same tokens are computed together."""
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
    """The states of the chosen rows; `counts` are the numbers of states of all rows, which are adjacent."""
    if len(rows) == len(counts):
        return states  # nearly always: all choices of one model read the same tokens
    parts = torch.split(states, list(counts))
    return torch.cat([parts[row] for row in rows])


def _read_top_tokens(batch: _Batch) -> Pending:
    head, states = _mlm_states(batch)
    k = max(readout.k for readout in batch.readouts)
    best = [_top(part, head, k) for part in torch.split(states, _MAX_POSITIONS)]
    scores = to_host(torch.cat([each[0] for each in best]))
    ids = to_host(torch.cat([each[1] for each in best]).to(torch.int32))
    readouts = batch.readouts  # not the batch, which would keep the hidden states in memory until the outputs are built
    ends = np.cumsum([len(readout.positions) for readout in readouts])[:-1]

    def outputs() -> list[Output]:
        parts = zip(readouts, np.split(scores.numpy(), ends), np.split(ids.numpy(), ends), strict=True)
        return [Output(row_scores[:, : readout.k], row_ids[:, : readout.k]) for readout, row_scores, row_ids in parts]

    return outputs


_READERS: dict[type, Callable[[_Batch], Pending]] = {
    Cls: _read_cls,
    Mean: _read_mean,
    Pooled: _read_pooled,
    Labels: _read_labels,
    Spans: _read_spans,
    TokenScores: _read_token_scores,
    TopTokens: _read_top_tokens,
}


def _mlm_states(batch: _Batch) -> tuple[MlmHead, Tensor]:
    """The transformed hidden states at all positions of the readouts, row after row, float32 [positions, hidden]."""
    head = batch.weights.mlm
    assert head
    states = head.transform.gelu(batch.states, gelu_of(batch.shape))
    return head, head.norm(states).float()


def _top(states: Tensor, head: MlmHead, k: int) -> tuple[Tensor, Tensor]:
    logits = torch.cat([_logits(states, head, tokens) for tokens in _slices(len(head.decoder.bias))], dim=1)
    best = logits.softmax(dim=1).topk(k, dim=1)
    return best.values, best.indices


def _slices(num_tokens: int) -> Iterator[slice]:
    return (slice(start, start + _MAX_TOKENS) for start in range(0, num_tokens, _MAX_TOKENS))


def _logits(states: Tensor, head: MlmHead, tokens: Tensor | slice) -> Tensor:
    """In float32, because different tokens would often have equal logits in bfloat16."""
    return F.linear(states, head.decoder.weight[tokens].float(), head.decoder.bias[tokens].float())


def _one_row_each(scores: Tensor) -> Pending:
    host = to_host(scores)
    return lambda: [Output(row) for row in host.numpy()[:, None, :]]
