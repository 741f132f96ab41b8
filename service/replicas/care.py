"""How replicas are looked after: how long to wait for one, how long between two starts, when to give up hope.

Pure, but for the clock and the sleep that it holds. Knows no process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

STEADY_S = 60.0
"""A child that has served for so long did not fail because of how it was started."""


def back_off_s(num_failures: int) -> float:
    """At once after the first loss, then 1, 2, 4 ... 30 seconds."""
    return 0.0 if num_failures <= 1 else min(30.0, 2.0 ** (num_failures - 2))


@dataclass(frozen=True, slots=True)
class Care:
    """All in seconds, but four: `threads` are of one replica, a start may take `restart_factor` times as long as one
    before, a batch `hang_factor` times as long as is predicted, and `max_crashes` losses of every replica in a row are
    too many. The least of both waits is for what happens once: a kernel that is compiled, a disk that is busy."""

    threads: int
    start_timeout_s: float = 900.0
    restart_factor: float = 5.0
    least_restart_s: float = 30.0
    hang_timeout_s: float = 120.0
    hang_factor: float = 20.0
    least_patience_s: float = 10.0
    stop_grace_s: float = 5.0
    max_crashes: int = 6
    canary_interval_s: float = 60.0
    back_off_s: Callable[[int], float] = back_off_s
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic

    def start_patience_s(self, longest_s: float | None) -> float:
        """Seconds that a start may take; `longest_s` is what the longest one so far took, None before the first."""
        if longest_s is None:
            return self.start_timeout_s
        return min(self.start_timeout_s, max(self.least_restart_s, self.restart_factor * longest_s))

    def patience_s(self, predicted_s: float | None) -> float:
        """Seconds that a batch may take which is expected to take so many, if anybody knows."""
        if predicted_s is None:
            return self.hang_timeout_s
        return min(self.hang_timeout_s, max(self.least_patience_s, self.hang_factor * predicted_s))
