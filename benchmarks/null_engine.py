"""An engine that computes nothing: what is left of a request's time and cost is the service around it.

Importable by the child process, which finds `load_null` by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from service.checkpoints.checkpoint import Checkpoint
from service.domain import Encoding, Memory, Output, Step, TokenScores
from service.replicas.runner import Progress


class NullEngine:
    """Computes nothing. Every row's answer is zeros, as zero-shot classification reads them."""

    precision = "none"

    def warm_up(self) -> None:
        """Nothing is cold."""

    def profile(self) -> Iterator[Step]:
        return iter(())

    def canary(self) -> list[Encoding]:
        nothing = np.zeros(1, dtype=np.int32)
        return [Encoding("", nothing, nothing, nothing, TokenScores((0,), (0,)))]

    def device_memory(self) -> Memory | None:
        return None

    def prepare(self, encodings: Sequence[Encoding]) -> Callable[[], list[Output]]:
        return lambda: [_answer(encoding) for encoding in encodings]


def _answer(encoding: Encoding) -> Output:
    assert isinstance(encoding.readout, TokenScores), "the load is zero-shot classification"
    return Output(np.zeros((len(encoding.readout.positions), len(encoding.readout.token_ids)), dtype=np.float32))


def load_null(checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress) -> NullEngine:
    return NullEngine()
