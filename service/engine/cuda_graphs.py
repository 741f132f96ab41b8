"""CUDA graphs for small batches: the forward is recorded once for each of a few numbers of tokens, then replayed.

Launching the kernels of a small forward one by one takes the host longer than the GPU needs to run them. The work of a
graph depends on its bucket alone: ids and owners of the tokens are in buffers of that size, and all rows go through one
dense attention under a mask that is computed from the owners inside the graph. Its quadratic cost is small for so few
tokens. The recorder is a parameter, so that everything else runs without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from service.checkpoints.checkpoint import Shape
from service.domain import Check
from service.engine.arithmetic import Compute
from service.engine.attention_backends import added_mask, dense
from service.engine.device import to_device
from service.engine.encoder import encode
from service.engine.packing import Layout
from service.engine.self_test import compare
from service.engine.weights import Weights

Forward = Callable[[Tensor, Tensor], Tensor]
"""From ids, segment ids and positions [3, tokens] and owners [2, tokens] to hidden states [tokens, hidden]."""

Call = Callable[[], Tensor]
Record = Callable[[Call], Call]
"""Records a call; the returned function repeats its work on the same buffers."""

BUCKETS = (32, 64, 96, 128, 192, 256, 384, 512)


def dense_forward(weights: Weights, shape: Shape) -> Forward:
    def forward(tokens: Tensor, owners: Tensor) -> Tensor:
        return encode(weights, shape, tokens, dense(added_mask(owners, weights.words.dtype)))

    return forward


@dataclass(frozen=True, slots=True)
class _Graph:
    tokens: Tensor
    owners: Tensor
    replay: Call


class Graphs:
    """No graphs until `record`; from then on a batch goes through the smallest bucket that holds it."""

    def __init__(
        self, forward: Forward, record: Record, device: torch.device, buckets: Sequence[int] = BUCKETS
    ) -> None:
        self._forward = forward
        self._record = record
        self._device = device
        self._buckets = sorted(buckets)
        self._graphs: dict[int, _Graph] = {}
        self._failures: dict[int, Exception] = {}

    @property
    def is_wanted(self) -> bool:
        return bool(self._buckets)

    def record(self) -> None:
        """Records the graphs that are missing. Nothing else may use the GPU meanwhile.

        The largest one comes first, because the others share its memory. One that cannot be recorded is left out.
        """
        for bucket in reversed(self._buckets):
            if bucket not in self._graphs and bucket not in self._failures:
                try:
                    self._graphs[bucket] = self._record_bucket(bucket)
                except Exception as error:  # noqa: BLE001 - larger batches are computed without graphs, too
                    self._failures[bucket] = error

    def check(self, compute: Compute, make_batch: Callable[[int], tuple[Tensor, Layout]], limit: float) -> list[Check]:
        """Compares each graph with `compute` on the batch that `make_batch` makes of a number of tokens.

        A graph that differs by more than `limit` is left out: its batches are computed without one.
        """
        checks = [self._check_bucket(bucket, compute, make_batch, limit) for bucket in self._buckets]
        for bucket, check in zip(self._buckets, checks, strict=True):
            if not check.is_sound:
                self._graphs.pop(bucket, None)
        return checks

    def _check_bucket(
        self, bucket: int, compute: Compute, make_batch: Callable[[int], tuple[Tensor, Layout]], limit: float
    ) -> Check:
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
        graph = self._fitting(layout.num_tokens)
        if graph is None:
            return None
        # Tokens of an earlier batch that remain behind these are a row of their own, which is never read.
        graph.tokens[:, : layout.num_tokens].copy_(tokens)
        owners = torch.from_numpy(layout.owners(graph.owners.shape[1]))
        graph.owners.copy_(to_device(owners, self._device))
        return graph.replay()

    def _fitting(self, num_tokens: int) -> _Graph | None:
        bucket = next((each for each in self._buckets if each >= num_tokens), None)
        return None if bucket is None else self._graphs.get(bucket)

    def _record_bucket(self, bucket: int) -> _Graph:
        tokens, owners = (torch.zeros(lines, bucket, dtype=torch.int32, device=self._device) for lines in (3, 2))
        return _Graph(tokens, owners, self._record(lambda: self._forward(tokens, owners)))


class CudaRecorder:
    """Records all graphs into one memory pool, because they are replayed one after the other on one stream."""

    _NUM_WARM_UPS = 3
    """These calls compile kernels and set up libraries, which must not happen while a graph is recorded."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, call: Call) -> Call:
        self._warm_up(call)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            out = call()
        self._pool = self._pool or graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay

    def _warm_up(self, call: Call) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self._NUM_WARM_UPS):
                call()
        torch.cuda.current_stream().wait_stream(stream)
