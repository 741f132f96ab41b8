"""How a child gets its engine. Importable without torch: the parent only names this function, the child calls it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from service.checkpoints.checkpoint import Checkpoint
from service.domain import Encoding, Memory, Output, Quantization, Step

Progress = Callable[[int, int], None]
"""Bytes done, bytes in all."""


class Runner(Protocol):
    """An engine as a child needs it."""

    @property
    def precision(self) -> str: ...

    def warm_up(self) -> None: ...

    def profile(self) -> Iterator[Step]:
        """Forwards of many sizes, each measured when it is asked for; OutOfMemory where that is their end."""
        ...

    def canary(self) -> list[Encoding]:
        """Rows that come to the same numbers each time."""
        ...

    def device_memory(self) -> Memory | None:
        """None where it is the process's own."""
        ...

    def prepare(self, encodings: Sequence[Encoding]) -> Callable[[], list[Output]]:
        """Does what can be done while another batch computes; the call of what comes back does the rest, in another
        thread. What was prepared first is finished first. Both raise OutOfMemory when there is no room for all rows."""
        ...


class Load(Protocol):
    """A function of a module: it crosses the process border by name."""

    def __call__(self, checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress) -> Runner: ...


def load_engine(
    checkpoint: Checkpoint,
    *,
    device: str,
    precision: str,
    progress: Progress,
    quantization: Quantization = "none",
    weight_cache: Path | None = None,
) -> Runner:
    if weight_cache and device != "cpu":
        # Where torch's compiler keeps what it has made for a GPU, unless the user says otherwise: a restart is quick.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(weight_cache / "compiled"))
    from service.engine.engine import Engine  # torch stays out of the parent

    return Engine.load(
        checkpoint,
        device=device,
        precision=precision,
        quantization=quantization,
        progress=progress,
        weight_cache=weight_cache,
    )
