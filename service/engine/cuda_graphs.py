"""CUDA graphs: the forward is recorded once for each of some numbers of tokens, then replayed.

Launching the kernels of a forward one by one takes the host longer than a GPU needs to run them, up to a number of
tokens that depends on the model and on both: graphs are recorded as far as that. The work of a graph depends on its
bucket alone: what it needs of a batch, ids and whose token is whose, is in buffers that every replay fills. Up to
DENSE_TOKENS the attention is dense, as its quadratic cost is small for so few tokens; from there on, it is that of the
engine's backend. The recorder is a parameter, so that everything else runs without a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import median

import numpy as np
import torch
from torch import Tensor

from service.domain import Check, IdArray
from service.engine.arithmetic import Compute
from service.engine.attention_backends import DENSE, Attend, Recordable
from service.engine.device import Call, Record, to_device, wait_event
from service.engine.packing import Layout
from service.engine.self_test import compare

Forward = Callable[[Tensor, Attend], Tensor]
"""From ids, segment ids and positions [3, tokens] to hidden states [tokens, hidden]."""

MakeBatch = Callable[[int, bool], tuple[Tensor, Layout]]
"""A batch of a number of tokens, with or without rows that have blocks."""

DENSE_TOKENS = 512
BUCKETS = (
    *(32, 64, 96, 128, 192, 256, 384, DENSE_TOKENS),
    *range(640, 1024, 128),
    *range(1024, 2048, 128),
    *range(2048, 4096, 256),
    *range(4096, 8192, 512),
    *range(8192, 16_384 + 1, 1024),
)
"""Beyond the first ones multiples of 128, for which FlexAttention has its fastest kernel, and an eighth to a quarter
apart: with its padding a batch is 3 to 11 % larger on average."""

_LAUNCH_SHARE = 0.9
"""Of the time of a forward. Where launching takes less, the device is the slower one, and a graph gains nothing."""
_NUM_TIMES = 3


@dataclass(frozen=True, slots=True)
class _Graph:
    tokens: Tensor  # [3, bucket]
    arrays: Tensor  # those of the attention one behind the other, int32
    replay: Call


_Key = tuple[int, Recordable]
"""The number of tokens, and the attention."""


class Graphs:
    """No graphs until `record`; from then on a batch goes through the smallest bucket that holds it."""

    def __init__(
        self,
        forward: Forward,
        record: Record,
        device: torch.device,
        dtype: torch.dtype,
        attentions: Sequence[Recordable] = (),
        buckets: Sequence[int] = BUCKETS,
    ) -> None:
        """`attentions` are those for many tokens: a batch takes the first one that can compute its rows."""
        self._forward = forward
        self._record = record
        self._device = device
        self._dtype = dtype
        self._attentions = attentions
        self._buckets = sorted(bucket for bucket in buckets if attentions or bucket <= DENSE_TOKENS)
        self._graphs: dict[_Key, _Graph] = {}
        self._failures: dict[_Key, Exception] = {}
        self._hidden: Tensor | None = None

    @property
    def is_wanted(self) -> bool:
        return bool(self._buckets)

    def limit(self, compute: Compute, make_batch: MakeBatch) -> None:
        """Drops the buckets from that power of two of tokens on for which the device takes longer than the launches."""
        tokens = 2 * DENSE_TOKENS
        while tokens <= self._buckets[-1] and self._is_slow_to_launch(compute, *make_batch(tokens, True)):
            tokens *= 2
        self._buckets = [bucket for bucket in self._buckets if bucket <= DENSE_TOKENS or bucket < tokens]

    def _is_slow_to_launch(self, compute: Compute, tokens: Tensor, layout: Layout) -> bool:
        shares = []
        for _ in range(_NUM_TIMES):
            started = time.perf_counter()
            compute(tokens, layout, None)
            launched = time.perf_counter()
            wait_event(self._device)()
            shares.append((launched - started) / (time.perf_counter() - started))
        return median(shares) > _LAUNCH_SHARE

    def record(self) -> None:
        """Records the graphs that are missing. Nothing else may use the GPU meanwhile.

        The largest one comes first, because the others share its memory. One that cannot be recorded is left out.
        """
        for key in self._keys():
            if key not in self._graphs and key not in self._failures:
                try:
                    self._graphs[key] = self._record_graph(*key)
                except Exception as error:  # noqa: BLE001 - the batches are computed without graphs, too
                    self._failures[key] = error

    def _keys(self) -> list[_Key]:
        return [(bucket, each) for bucket in reversed(self._buckets) for each in self._attentions_of(bucket)]

    def _attentions_of(self, bucket: int) -> Sequence[Recordable]:
        return (DENSE,) if bucket <= DENSE_TOKENS else self._attentions

    def check(self, compute: Compute, make_batch: MakeBatch, limit: float) -> list[Check]:
        """Compares each graph with `compute` on the batch that `make_batch` makes of a number of tokens.

        A graph that differs by more than `limit` is left out: its batches are computed without one.
        """
        checks = []
        for key in reversed(self._keys()):
            checks.append(self._check_graph(key, compute, make_batch, limit))
            if not checks[-1].is_sound:
                self._graphs.pop(key, None)
        return checks

    def _check_graph(self, key: _Key, compute: Compute, make_batch: MakeBatch, limit: float) -> Check:
        bucket, attention = key

        def pairs() -> Iterator[tuple[Tensor, Tensor]]:
            if key in self._failures:
                raise self._failures[key]
            tokens, layout = make_batch(bucket, attention.takes_blocks)
            replayed = self._replay(key, tokens, layout)
            assert replayed is not None, "it was recorded, and can compute these rows"
            end = layout.offsets[-1]  # the padding is never read
            yield replayed[:end], compute(tokens, layout, None)[:end]

        return compare("graph", f"{attention.name} {bucket}", pairs, limit)

    def run(self, tokens: Tensor, layout: Layout) -> Tensor | None:
        """The hidden states [bucket, hidden], valid until the next run; None when no graph can compute the batch."""
        bucket = next((each for each in self._buckets if each >= layout.num_tokens), None)
        if bucket is None:
            return None
        replays = (self._replay((bucket, each), tokens, layout) for each in self._attentions_of(bucket))
        return next((hidden for hidden in replays if hidden is not None), None)

    def _replay(self, key: _Key, tokens: Tensor, layout: Layout) -> Tensor | None:
        bucket, attention = key
        graph = self._graphs.get(key)
        if graph is None:
            return None
        arrays = attention.arrays(Layout(layout.rows, bucket))
        if arrays is None:
            return None
        # Tokens of an earlier batch that remain behind these are a row of their own, which is never read.
        graph.tokens[:, : layout.num_tokens].copy_(tokens)
        graph.arrays.copy_(to_device(torch.from_numpy(_joined(arrays)), self._device))
        return graph.replay()

    def _record_graph(self, bucket: int, attention: Recordable) -> _Graph:
        tokens = torch.zeros(3, bucket, dtype=torch.int32, device=self._device)
        blank = attention.arrays(Layout((), bucket))
        assert blank is not None, "the padding alone"
        arrays = to_device(torch.from_numpy(_joined(blank)), self._device)
        offsets = accumulate((each.size for each in blank), initial=0)
        views = [
            arrays[start:end].view(each.shape) for each, (start, end) in zip(blank, pairwise(offsets), strict=True)
        ]
        replay = self._record(lambda: self._kept(self._forward(tokens, attention.attend(views, self._dtype))))
        return _Graph(tokens, arrays, replay)

    def _kept(self, hidden: Tensor) -> Tensor:
        """The hidden states in memory that all graphs share: together, those of all would be a tenth of the weights."""
        if self._hidden is None:
            self._hidden = hidden.new_empty(self._buckets[-1], hidden.shape[1])
        return self._hidden[: len(hidden)].copy_(hidden)


def _joined(arrays: Sequence[IdArray]) -> IdArray:
    return np.concatenate([each.ravel() for each in arrays])
