"""How fast the queue drains, as measured: what a refused caller is told to wait is a number, not a guess."""

from __future__ import annotations

WEIGHT = 0.2
"""Of the newest batch in the moving averages: the last dozen batches decide."""

UNMEASURED_S = 1.0
LONGEST_S = 60.0


class DrainRate:
    """Exponential moving averages of tokens per batch and seconds between batches."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._last = float("-inf")

    def note(self, tokens: int, taken: float, landed: float) -> None:
        """A batch was computed between two times; what several replicas compute at once is counted once."""
        seconds = landed - max(taken, self._last)
        self._last = landed
        weight = WEIGHT if self._tokens else 1.0
        self._tokens += weight * (tokens - self._tokens)
        self._seconds += weight * (seconds - self._seconds)

    def seconds_for(self, tokens: int) -> float:
        """How long it takes until so many tokens are computed; at most a minute, a second when nothing is known."""
        if not self._tokens:
            return UNMEASURED_S
        return min(LONGEST_S, tokens * self._seconds / self._tokens)
