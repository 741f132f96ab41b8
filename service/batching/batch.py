"""The contract between the batcher and whoever computes its batches: encodings in, outputs and seconds out.

Knows neither of the two.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from service.domain import Encoding, Failure, Output
from service.errors import ReplicaLost


@dataclass(frozen=True, slots=True)
class BatchResult:
    """One output per encoding, in order, or why there is none for that row alone.

    `fitting_tokens` is None unless the device ran out of memory: so many tokens fit at a time, as far as is known.
    """

    outputs: Sequence[Output | Failure]
    compute_s: float
    fitting_tokens: int | None = None


class BatchNotStarted(ReplicaLost):
    """The batch only waited for its turn when the replica was lost: it had no part in that."""


Run = Callable[[Sequence[Encoding]], Awaitable[BatchResult]]
"""Raises ReplicaLost when the batch is lost and may be computed elsewhere, Untouched when it was not at hand."""

Feed = Callable[[Run], Coroutine[Any, Any, None]]
"""Takes batches for one `Run` until that is lost or there will be no more."""
