"""What a worker process needs of an engine, and how it loads one.

Importable without torch: the parent names `load_engine`, the worker process calls it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from service.checkpoints.checkpoint import Checkpoint
from service.domain import Check, Encoding, Memory, Output, Step, WantedQuantization, WantedRuntime

ENGINE_MODULE = "service.engine.engine"
"""What `load_engine` imports, with torch."""

Progress = Callable[[int, int], None]
"""Bytes done, bytes in all."""


class Runner(Protocol):
    """An engine, as a worker process uses it."""

    @property
    def precision(self) -> str: ...

    def warm_up(self) -> None: ...

    @property
    def checks(self) -> tuple[Check, ...]:
        """What the self-test found of each kernel that it tried; complete after `warm_up`."""
        ...

    def profile(self) -> Iterator[Step]:
        """Measures forwards of many sizes, one per step; OutOfMemory when one does not fit."""
        ...

    def canary(self) -> list[list[Encoding]]:
        """Batches whose outputs are the same each time."""
        ...

    @property
    def has_found_damage(self) -> bool:
        """Whether cached weights were found damaged, now or while they were loaded."""
        ...

    def replace_damaged_weights(self) -> bool:
        """Checks cached weights completely, and loads them again where they are damaged. No batch may run."""
        ...

    def require_sound_weights(self, share: float = 1.0) -> None:
        """Raises DamagedFile when cached weights in use have changed. Any thread may call it.

        `share` is that of the time in which it works.
        """
        ...

    def device_memory(self) -> Memory | None:
        """None where it is the memory of the process."""
        ...

    def prepare(self, encodings: Sequence[Encoding]) -> Callable[[], list[Output]]:
        """Starts a batch while another one computes; the returned call completes it, in another thread.

        Batches are completed in the order of their preparation. Both raise OutOfMemory when the rows do not fit.
        """
        ...


class Load(Protocol):
    """A module function: it crosses the process boundary by name."""

    def __call__(self, checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress) -> Runner: ...


def load_engine(
    checkpoint: Checkpoint,
    *,
    device: str,
    precision: str,
    progress: Progress,
    runtime: WantedRuntime = "torch",
    quantization: WantedQuantization = "none",
    weight_cache: Path | None = None,
) -> Runner:
    if weight_cache and device != "cpu":
        # Where torch's compiler caches its kernels for a GPU, unless the user says otherwise: restarts are quick.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(weight_cache / "compiled"))
    from service.engine.engine import Engine  # torch stays out of the parent
    from service.tasks.sample_rows import sample_rows
    from service.tasks.text_model import TextModel

    return Engine.load(
        checkpoint,
        device=device,
        precision=precision,
        runtime=runtime,
        quantization=quantization,
        progress=progress,
        weight_cache=weight_cache,
        sample_rows=lambda: sample_rows(TextModel.load(checkpoint)),
    )
