"""The contract between the batcher and whoever computes its batches: encodings in, outputs and seconds out.

Knows neither of the two.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from service.domain import Encoding, Output


@dataclass(frozen=True, slots=True)
class Ran:
    """One output per encoding, in order; None where the forward failed on that row alone."""

    outputs: Sequence[Output | None]
    compute_s: float


Run = Callable[[Sequence[Encoding]], Awaitable[Ran]]
"""Raises ReplicaLost when the batch is lost and may be computed elsewhere."""

Feed = Callable[[Run], Coroutine[Any, Any, None]]
"""Takes batches for one `Run` until that is lost or there will be no more."""
