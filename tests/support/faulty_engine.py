"""The real engine with a forward that fails on request."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from torch import Tensor

from service.engine.engine import Engine
from service.engine.packing import Packed
from tests.support.engines import CRASH_TOKENS, FOR_GOOD, POISON_TOKENS, ROOM_TOKENS, Order, take

CHUNK_BYTES = 1 << 26
MOST_BYTES = 1 << 31
"""The maximum to allocate when no memory limit applies."""


class FaultyEngine(Engine):
    """An engine that carries out the orders of the folder given to `obey`."""

    _orders: Path | None = None
    _broken: Order | None = None

    def obey(self, orders: Path) -> None:
        self._orders = orders

    def hidden_states(self, packed: Packed) -> Tensor:
        order = self._order(packed)
        self._fail(order, packed)
        hidden = super().hidden_states(packed)
        match self._broken or order:
            case "nan" | "nan for good":
                return hidden * torch.nan
            case "wrong for good":
                return -hidden
        return hidden

    def _order(self, packed: Packed) -> Order | None:
        """The next order, or None. Batches of warm-up and canary, whose first id is 0, take no order."""
        if self._orders is None or packed.encodings[0].ids[0] == 0:
            return None
        order = take(self._orders)
        if order in FOR_GOOD:
            self._broken = order
        return order

    def _fail(self, order: Order | None, packed: Packed) -> None:
        lengths = [encoding.num_tokens for encoding in packed.encodings]
        if CRASH_TOKENS in lengths:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._broken == "little room" and sum(lengths) > ROOM_TOKENS:
            raise torch.OutOfMemoryError("the memory is limited")
        if order == "raise" or POISON_TOKENS in lengths:
            raise RuntimeError("the forward failed")
        if order == "exit":
            os._exit(3)
        if order == "abort":
            os.abort()
        if order == "eat":
            eat()


def eat() -> None:
    """Allocates memory until the kernel kills this process."""
    eaten: list[bytes] = []
    while len(eaten) * CHUNK_BYTES < MOST_BYTES:
        eaten.append(b"\x01" * CHUNK_BYTES)
