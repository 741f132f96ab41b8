"""CUDA graphs for small batches: the whole forward recorded once for each of a few numbers of tokens, then replayed.

Launching the kernels of a small forward one by one takes the host longer than the GPU needs to run them. What a graph
does depends on its bucket alone: ids and owners of the tokens lie in buffers of that size, and all rows, choices too,
go through one attention under a mask that is made of the owners inside the graph. The square that this costs is small
where graphs are used. Knows no encodings; recording is handed in, so that all else runs where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from service.checkpoints.checkpoint import Shape
from service.engine.attention_backends import added_mask, dense
from service.engine.device import to_device
from service.engine.encoder import encode
from service.engine.packing import Layout
from service.engine.weights import Weights

Forward = Callable[[Tensor, Tensor], Tensor]
"""From ids, segment ids and positions [3, tokens] and owners [2, tokens] to hidden states [tokens, hidden]."""

Call = Callable[[], Tensor]
Record = Callable[[Call], Call]
"""Takes a call down; what comes back does the same work on the same buffers."""

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
    """Empty until `record`: then every pack goes through the smallest bucket that holds it."""

    def __init__(
        self, forward: Forward, record: Record, device: torch.device, buckets: Sequence[int] = BUCKETS
    ) -> None:
        self._forward = forward
        self._record = record
        self._device = device
        self._buckets = sorted(buckets)
        self._graphs: dict[int, _Graph] = {}

    @property
    def is_wanted(self) -> bool:
        return bool(self._buckets)

    def record(self) -> None:
        """Before requests come: nothing else may use the GPU meanwhile. Largest first, whose memory the others share.
        What is recorded already stays."""
        for bucket in reversed(self._buckets):
            if bucket not in self._graphs:
                self._graphs[bucket] = self._recorded(bucket)

    def run(self, tokens: Tensor, layout: Layout) -> Tensor | None:
        """The hidden states, [bucket, hidden], good until the next run; None when the pack is too large."""
        graph = self._fitting(layout.num_tokens)
        if graph is None:
            return None
        # What is left of earlier tokens behind these is a row of its own, which nobody reads.
        graph.tokens[:, : layout.num_tokens].copy_(tokens)
        owners = torch.from_numpy(layout.owners(graph.owners.shape[1]))
        graph.owners.copy_(to_device(owners, self._device))
        return graph.replay()

    def _fitting(self, num_tokens: int) -> _Graph | None:
        bucket = next((each for each in self._buckets if each >= num_tokens), None)
        return None if bucket is None else self._graphs.get(bucket)

    def _recorded(self, bucket: int) -> _Graph:
        tokens, owners = (torch.zeros(lines, bucket, dtype=torch.int32, device=self._device) for lines in (3, 2))
        return _Graph(tokens, owners, self._record(lambda: self._forward(tokens, owners)))


class CudaRecorder:
    """Records into one pool of memory: graphs are replayed one after the other, on one stream."""

    _WARM_UPS = 3
    """Kernels are made and libraries set up in these, which must not happen while a graph is recorded."""

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
            for _ in range(self._WARM_UPS):
                call()
        torch.cuda.current_stream().wait_stream(stream)
