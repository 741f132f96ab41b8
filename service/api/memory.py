"""One budget for the memory of all requests in progress: bodies, tokenized rows, replies, and what clients do not read.

The connection takes the bytes that it receives and the replies that are not sent yet; the route takes its rows and its
reply before they are made. So a protocol is bounded without code of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.errors import MemoryFull
from service.settings import LARGEST_REQUEST

SMALL_BYTES = 64 * 2**10
"""Up to here a request may use the whole budget; a larger one only LARGE_SHARE of it, so small ones always pass."""
LARGE_SHARE = 0.75
DEFAULT_BYTES = 256 * 2**20
SHARE_OF_MEMORY = 16
ROW_BYTES, TOKEN_BYTES = 2048, 40
"""Memory of a tokenized row and of each of its tokens: arrays, the row's identity, its job; in a window of a passage
also the place of each token and its two logits."""
RETRY_S = 1.0


def default_budget(memory_bytes: int, max_body_bytes: int) -> int:
    """DEFAULT_BYTES, or less on a small machine; never less than a request of the largest body takes."""
    return max(min(DEFAULT_BYTES, memory_bytes // SHARE_OF_MEMORY), LARGEST_REQUEST * max_body_bytes)


class MemoryBudget:
    """Counts bytes in use. `reclaim` frees some when there is no room, and returns whether it did."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used = 0
        self.reclaim: Callable[[], bool] = lambda: False

    def take(self, num_bytes: int, held: int = 0) -> bool:
        """Takes bytes if there is room for them; `held` is what the same request has taken already."""
        while not self._has_room(num_bytes, held):
            if not self.reclaim():
                return False
        self.used += num_bytes
        return True

    def add(self, num_bytes: int) -> None:
        """Takes bytes that are in use already, whether there is room or not."""
        self.used += num_bytes

    def give(self, num_bytes: int) -> None:
        self.used -= num_bytes

    @contextmanager
    def reserved(self, num_bytes: int) -> Iterator[None]:
        """Raises MemoryFull."""
        if not self.take(num_bytes):
            raise memory_full()
        try:
            yield
        finally:
            self.give(num_bytes)

    def _has_room(self, num_bytes: int, held: int) -> bool:
        is_small = held + num_bytes <= SMALL_BYTES
        return self.used + num_bytes <= self.max_bytes * (1.0 if is_small else LARGE_SHARE)


def memory_full() -> MemoryFull:
    return MemoryFull("the memory for requests in progress is in use; send this request again", retry_after_s=RETRY_S)
