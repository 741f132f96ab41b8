"""What a replica can be told to do wrong: a file of that name in a folder is an order to whoever finds it first.

Importable without torch: the server's process names `load_faulty`, its children call it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from service.checkpoints.checkpoint import Checkpoint
from service.replicas.runner import Progress, Runner

Order = Literal["raise", "nan", "exit", "abort", "eat", "nan for good", "wrong for good", "little room"]
ONCE: tuple[Order, ...] = ("raise", "nan", "exit", "abort", "eat")
FOR_GOOD: tuple[Order, ...] = ("nan for good", "wrong for good", "little room")
"""Until the process ends, as of a device that is broken."""

POISON_TOKENS, KILLER_TOKENS = 401, 403
"""The forward raises on a row of so many tokens; the process dies of one of so many."""

TASKS = "tasks"
"""The file in the same folder in which the server tells the number of its asyncio tasks."""

ROOM_TOKENS = 360
"""Beyond so many together there is no memory, where there is little room; for each row alone there is."""


def give(folder: Path, order: Order) -> None:
    (folder / order).touch()


def is_open(folder: Path, order: Order) -> bool:
    """Whether nobody has taken it yet."""
    return (folder / order).exists()


def take(folder: Path) -> Order | None:
    """The first order that nobody else has."""
    for order in (*ONCE, *FOR_GOOD):
        if is_open(folder, order):
            try:
                (folder / order).unlink()
            except FileNotFoundError:
                continue
            return order
    return None


def load_faulty(checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress, orders: Path) -> Runner:
    from benchmarks.faults.engine import FaultyEngine  # torch stays out of the parent

    engine = FaultyEngine.load(checkpoint, device=device, precision=precision, progress=progress)
    assert isinstance(engine, FaultyEngine)
    engine.obey(orders)
    return engine
