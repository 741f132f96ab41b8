"""A null engine and a faulty engine, and the orders that make the faulty one fail.

An order is a file of that name in a folder; the first replica that finds it carries it out. Importable without torch:
the server's process names `load_null` or `load_faulty`, its worker processes call it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from service.checkpoints.checkpoint import Checkpoint
from service.domain import Encoding, Memory, Output, Step, TokenScores
from service.replicas.runner import Progress, Runner

Order = Literal["raise", "nan", "exit", "abort", "eat", "nan for good", "wrong for good", "little room"]
ONCE: tuple[Order, ...] = ("raise", "nan", "exit", "abort", "eat")
FOR_GOOD: tuple[Order, ...] = ("nan for good", "wrong for good", "little room")
"""Permanent until the process exits, as on a broken device."""

POISON_TOKENS, CRASH_TOKENS = 401, 403
"""A row of 401 tokens makes the forward raise; a row of 403 tokens kills the process."""

ROOM_TOKENS = 360
"""With `little room`, a batch of more tokens runs out of memory; each row alone fits."""

TASKS = "tasks"
"""The file in the folder of orders into which the server writes the number of its asyncio tasks."""


def give(folder: Path, order: Order) -> None:
    (folder / order).touch()


def is_open(folder: Path, order: Order) -> bool:
    """Whether no replica has taken the order yet."""
    return (folder / order).exists()


def take(folder: Path) -> Order | None:
    """The first order that is open; each is taken by one replica."""
    for order in (*ONCE, *FOR_GOOD):
        if is_open(folder, order):
            try:
                (folder / order).unlink()
            except FileNotFoundError:
                continue
            return order
    return None


def load_faulty(checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress, orders: Path) -> Runner:
    from tests.support.faulty_engine import FaultyEngine  # the parent must not import torch

    engine = FaultyEngine.load(checkpoint, device=device, precision=precision, progress=progress)
    assert isinstance(engine, FaultyEngine)
    engine.obey(orders)
    return engine


class NullEngine:
    """Computes nothing: every row's scores are zeros, as zero-shot classification reads them."""

    precision = "none"

    def warm_up(self) -> None:
        """No-op."""

    def profile(self) -> Iterator[Step]:
        return iter(())

    def canary(self) -> list[Encoding]:
        nothing = np.zeros(1, dtype=np.int32)
        return [Encoding("", nothing, nothing, nothing, TokenScores((0,), (0,)))]

    def device_memory(self) -> Memory | None:
        return None

    def prepare(self, encodings: Sequence[Encoding]) -> Callable[[], list[Output]]:
        return lambda: [_zeros(encoding) for encoding in encodings]


def _zeros(encoding: Encoding) -> Output:
    assert isinstance(encoding.readout, TokenScores), "the load is zero-shot classification"
    return Output(np.zeros((len(encoding.readout.positions), len(encoding.readout.token_ids)), dtype=np.float32))


def load_null(checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress) -> NullEngine:
    return NullEngine()
