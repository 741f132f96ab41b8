"""CUDA graphs: the forward is recorded once for each of some numbers of tokens, then replayed.

Launching the kernels of a forward one by one takes the host longer than a GPU needs to run them, up to a number of
tokens that depends on the model and on both: graphs are recorded as far as that. The work of a graph depends on its
bucket alone: what it needs of a batch, ids and whose token is whose, is in buffers that every replay fills. Up to
DENSE_TOKENS the attention is dense, as its quadratic cost is small for so few tokens, and FlexAttention from there on.
The recorder is a parameter, so that everything else runs without a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from service.domain import Check, IdArray
from service.engine.arithmetic import Compute
from service.engine.attention import Attend
from service.engine.attention_backends import DENSE, FLEX, Recordable
from service.engine.device import to_device, wait_event
from service.engine.packing import Layout
from service.engine.self_test import compare

Forward = Callable[[Tensor, Attend], Tensor]
"""From ids, segment ids and positions [3, tokens] to hidden states [tokens, hidden]."""

MakeBatch = Callable[[int], tuple[Tensor, Layout]]
"""A batch of a number of tokens."""

Call = Callable[[], Tensor]
Record = Callable[[Call], Call]
"""Records a call; the returned function repeats its work on the same buffers."""

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
    attention: Recordable
    replay: Call


class Graphs:
    """No graphs until `record`; from then on a batch goes through the smallest bucket that holds it."""

    def __init__(
        self,
        forward: Forward,
        record: Record,
        device: torch.device,
        dtype: torch.dtype,
        buckets: Sequence[int] = BUCKETS,
    ) -> None:
        self._forward = forward
        self._record = record
        self._device = device
        self._dtype = dtype
        self._buckets = sorted(buckets)
        self._graphs: dict[int, _Graph] = {}
        self._failures: dict[int, Exception] = {}
        self._hidden: Tensor | None = None

    @property
    def is_wanted(self) -> bool:
        return bool(self._buckets)

    def limit(self, compute: Compute, make_batch: MakeBatch) -> None:
        """Drops the buckets from that power of two of tokens on for which the device takes longer than the launches."""
        tokens = 2 * DENSE_TOKENS
        while tokens <= self._buckets[-1] and self._is_slow_to_launch(compute, *make_batch(tokens)):
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
        for bucket in reversed(self._buckets):
            if bucket not in self._graphs and bucket not in self._failures:
                try:
                    self._graphs[bucket] = self._record_bucket(bucket)
                except Exception as error:  # noqa: BLE001 - the batches are computed without graphs, too
                    self._failures[bucket] = error

    def check(self, compute: Compute, make_batch: MakeBatch, limit: float) -> list[Check]:
        """Compares each graph with `compute` on the batch that `make_batch` makes of a number of tokens.

        A graph that differs by more than `limit` is left out: its batches are computed without one.
        """
        checks = [self._check_bucket(bucket, compute, make_batch, limit) for bucket in self._buckets]
        for bucket, check in zip(self._buckets, checks, strict=True):
            if not check.is_sound:
                self._graphs.pop(bucket, None)
        return checks

    def _check_bucket(self, bucket: int, compute: Compute, make_batch: MakeBatch, limit: float) -> Check:
        def pairs() -> Iterator[tuple[Tensor, Tensor]]:
            if bucket in self._failures:
                raise self._failures[bucket]
            tokens, layout = make_batch(bucket)
            replayed = self.run(tokens, layout)
            assert replayed is not None, "it was recorded"
            end = layout.offsets[-1]  # the padding is never read
            yield replayed[:end], compute(tokens, layout, None)[:end]

        return compare("graph", str(bucket), pairs, limit)

    def run(self, tokens: Tensor, layout: Layout) -> Tensor | None:
        """The hidden states [bucket, hidden], valid until the next run; None when the batch is too large."""
        bucket = next((each for each in self._buckets if each >= layout.num_tokens), None)
        graph = None if bucket is None else self._graphs.get(bucket)
        if graph is None:
            return None
        # Tokens of an earlier batch that remain behind these are a row of their own, which is never read.
        graph.tokens[:, : layout.num_tokens].copy_(tokens)
        arrays = graph.attention.arrays(Layout(layout.rows, graph.tokens.shape[1]))
        graph.arrays.copy_(to_device(torch.from_numpy(_joined(arrays)), self._device))
        return graph.replay()

    def _record_bucket(self, bucket: int) -> _Graph:
        attention = DENSE if bucket <= DENSE_TOKENS else FLEX
        tokens = torch.zeros(3, bucket, dtype=torch.int32, device=self._device)
        blank = attention.arrays(Layout((), bucket))
        arrays = to_device(torch.from_numpy(_joined(blank)), self._device)
        offsets = accumulate((each.size for each in blank), initial=0)
        views = [
            arrays[start:end].view(each.shape) for each, (start, end) in zip(blank, pairwise(offsets), strict=True)
        ]
        replay = self._record(lambda: self._kept(self._forward(tokens, attention.attend(views, self._dtype))))
        return _Graph(tokens, arrays, attention, replay)

    def _kept(self, hidden: Tensor) -> Tensor:
        """The hidden states in memory that all graphs share: together, those of all would be a tenth of the weights."""
        if self._hidden is None:
            self._hidden = hidden.new_empty(self._buckets[-1], hidden.shape[1])
        return self._hidden[: len(hidden)].copy_(hidden)


def _joined(arrays: Sequence[IdArray]) -> IdArray:
    return np.concatenate([each.ravel() for each in arrays])


class CudaRecorder:
    """Records all graphs into one memory pool, because they are replayed one after the other on one stream.

    And on one stream: libraries keep a workspace of megabytes for each that they have worked on.
    """

    def __init__(self) -> None:
        self._pool: Any = None
        self._stream: Any = None

    def __call__(self, call: Call) -> Call:
        self._stream = self._stream or torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            call()  # compiles kernels and sets up libraries, which must not happen while a graph is recorded
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            out = call()
        self._pool = self._pool or graph.pool()
        torch.cuda.current_stream().wait_stream(self._stream)

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay
