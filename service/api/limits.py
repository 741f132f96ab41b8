"""What one caller may still do at the moment: requests and tokens per second, requests at once.

Knows no HTTP. One process counts for itself: two instances behind a proxy allow twice as much.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from service.api.keys import Rights
from service.domain import Priority
from service.metric_labels import KeyRefusal

CONCURRENCY_RETRY_S = 1.0
"""When one of the running requests ends, nobody knows."""
_ROUNDING = 1e-6


class Bucket:
    """A token bucket that holds what one second brings, and at least 1. It may be drawn below zero: then it is closed
    for as long as that takes to come back. `rate` is per second; 0 never closes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rate = 0.0
        self._level = 0.0
        self._at = clock()

    def set_rate(self, rate: float) -> None:
        """A new bucket is full; one in use keeps its level."""
        is_new = not self._rate
        self._fill()
        self._rate = rate
        self._level = self._size() if is_new else min(self._level, self._size())

    def wait_s(self) -> float:
        """Seconds until there is 1 in it; 0.0: there is."""
        if not self._rate:
            return 0.0
        self._fill()
        return max(0.0, 1 - _ROUNDING - self._level) / self._rate

    def draw(self, amount: float) -> None:
        if self._rate:
            self._fill()
            self._level -= amount

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._size(), self._level + (now - self._at) * self._rate)
        self._at = now

    def _size(self) -> float:
        return max(1.0, self._rate)


@dataclass(frozen=True, slots=True)
class Refusal:
    reason: KeyRefusal
    detail: str
    wait_s: float


class Account:
    """A caller by name, across changes of its rights."""

    def __init__(self, name: str, rights: Rights, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._num_running = 0
        self._requests = Bucket(clock)
        self._tokens = Bucket(clock)
        self.grant(rights)

    def grant(self, rights: Rights) -> None:
        self.rights = rights
        self._requests.set_rate(rights.requests_per_s)
        self._tokens.set_rate(rights.tokens_per_s)

    def refusal(self) -> Refusal | None:
        """Why a request would have to come back later, and when; None: it may `enter`."""
        rights = self.rights
        if 0 < rights.concurrency <= self._num_running:
            return Refusal("concurrency", f"{rights.concurrency} requests of this key run already", CONCURRENCY_RETRY_S)
        if wait_s := self._tokens.wait_s():
            return Refusal("tokens", f"this key may use {rights.tokens_per_s:g} tokens a second", wait_s)
        if wait_s := self._requests.wait_s():
            return Refusal("requests", f"this key may send {rights.requests_per_s:g} requests a second", wait_s)
        return None

    def enter(self) -> None:
        self._num_running += 1
        self._requests.draw(1)

    def leave(self) -> None:
        self._num_running -= 1

    def spend(self, tokens: int) -> None:
        """After the text was encoded: only then are they known."""
        self._tokens.draw(tokens)

    def priority(self, asked: Priority) -> Priority:
        return "bulk" if self.rights.priority == "bulk" else asked


ANYONE = Account("", Rights())
"""Whoever asks where there are no keys."""
