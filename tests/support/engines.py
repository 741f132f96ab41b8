"""A null engine and a faulty engine, and the orders that make the faulty one fail.

An order is a file of that name in a folder; the first replica that finds it carries it out. Importable without torch:
the server's process names `load_null` or `load_faulty`, its worker processes call it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from service.checkpoints.checkpoint import Checkpoint
from service.domain import Check, Encoding, Memory, Output, Step, TokenScores
from service.replicas.runner import Progress, Runner, load_engine

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


def load_watched(
    checkpoint: Checkpoint,
    *,
    device: str,
    precision: str,
    progress: Progress,
    weight_cache: Path,
    is_large: bool = False,
) -> Runner:
    """The real engine. It leaves a file of the name of its process next to the cache after each check of its weights.

    A small file is checked before it is used; `is_large` treats every file as a large one.
    """
    from service.engine import weight_cache as module  # torch stays out of the parent

    if is_large:
        module.CHECKED_FIRST_BYTES = 0
    engine = load_engine(checkpoint, device=device, precision=precision, progress=progress, weight_cache=weight_cache)
    check = engine.require_sound_weights

    def check_and_tell(share: float = 1.0) -> None:
        check(share)
        (weight_cache.parent / f"checked-{os.getpid()}").touch()

    engine.require_sound_weights = check_and_tell  # type: ignore[method-assign]
    return engine


class NullEngine:
    """Computes nothing: every row's scores are zeros, as zero-shot classification reads them."""

    precision = "none"

    def warm_up(self) -> None:
        """No-op."""

    def profile(self) -> Iterator[Step]:
        return iter(())

    def canary(self) -> list[list[Encoding]]:
        nothing = np.zeros(1, dtype=np.int32)
        return [[Encoding("", nothing, nothing, nothing, TokenScores((0,), (0,)))]]

    has_found_damage = False
    checks: tuple[Check, ...] = ()

    def replace_damaged_weights(self) -> bool:
        return False

    def require_sound_weights(self, share: float = 1.0) -> None:
        """No-op."""

    def device_memory(self) -> Memory | None:
        return None

    def prepare(self, encodings: Sequence[Encoding]) -> Callable[[], list[Output]]:
        return lambda: [_zeros(encoding) for encoding in encodings]


def _zeros(encoding: Encoding) -> Output:
    assert isinstance(encoding.readout, TokenScores), "the load is zero-shot classification"
    return Output(np.zeros((len(encoding.readout.positions), len(encoding.readout.token_ids)), dtype=np.float32))


def load_null(checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress) -> NullEngine:
    return NullEngine()
