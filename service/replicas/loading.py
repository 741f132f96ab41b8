"""How a child gets its engine. Importable without torch: the parent only names this function, the child calls it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from service.checkpoint import Checkpoint
from service.domain import Encoding, Output

Progress = Callable[[int, int], None]
"""Bytes done, bytes in all."""


class Runner(Protocol):
    """An engine as a child needs it."""

    @property
    def precision(self) -> str: ...

    def warm_up(self) -> None: ...

    def run(self, encodings: Sequence[Encoding]) -> list[Output]: ...


class Load(Protocol):
    """A function of a module: it crosses the process border by name."""

    def __call__(self, checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress) -> Runner: ...


def load_engine(checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress) -> Runner:
    from service.engine.engine import Engine  # torch stays out of the parent

    return Engine.load(checkpoint, device=device, precision=precision, progress=progress)
