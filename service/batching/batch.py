"""The contract between the batcher and a replica: batches go out, outputs and seconds come back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from service.batching.jobs import Job
from service.domain import Encoding, Failure, Output
from service.errors import ReplicaLost


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows of one model that are computed together. Made once, by `Queue.take`.

    `expected_s` is the predicted compute time of one replica, None while nothing was measured.
    """

    model: str
    jobs: Sequence[Job]
    encodings: Sequence[Encoding]
    num_tokens: int
    expected_s: float | None = None


@dataclass(frozen=True, slots=True)
class BatchResult:
    """One output per row, in order, or why that row alone has none.

    `fitting_tokens` is None unless the device ran out of memory; then it is the largest batch, in tokens, that is known
    to fit.
    """

    outputs: Sequence[Output | Failure]
    compute_s: float
    fitting_tokens: int | None = None


class BatchNotStarted(ReplicaLost):
    """The replica was lost while the batch waited behind another one: its rows are not suspect."""


class Replica(Protocol):
    """What computes batches. It is fed by any number of feeders at a time."""

    @property
    def name(self) -> str: ...

    async def run(self, batch: Batch) -> BatchResult:
        """Raises ReplicaLost when the replica was lost while it computed the batch, BatchNotStarted when before."""
        ...
