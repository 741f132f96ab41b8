"""Batches that were taken and have not landed yet: when they will, and how much later than computing takes.

Knows no job and no replica but by whatever tells one from another: it is told how long a batch should compute, and the
time. What comes on top, through the pipe and an event loop that has much to do, is measured here.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

BELIEVING = 0.1
"""Of the newest batch, in the average of how slow batches are."""

FARTHEST = 4.0
"""A batch that took this many times longer or shorter than expected counts as that many."""


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
    """A batch that a replica took at this time, expected to compute for so many seconds."""

    by: Hashable
    at: float
    seconds: float


@dataclass(slots=True)
class Pipe:
    """What one replica has: it computes the first, the others wait."""

    free_since: float
    batches: list[Taken] = field(default_factory=list)

    def began(self, batch: Taken) -> float:
        return max(batch.at, self.free_since)


class InFlight:
    """`slowness` is what batches take, from the moment the replica was free for them, over what was expected."""

    def __init__(self) -> None:
        self.slowness = 1.0
        self._pipes: dict[Hashable, Pipe] = {}

    def take(self, by: Hashable, seconds: float, now: float) -> Taken:
        """`by` is the replica; no seconds where nothing was measured."""
        batch = Taken(by, now, seconds)
        self._pipes.setdefault(by, Pipe(now)).batches.append(batch)
        return batch

    def land(self, batch: Taken, now: float) -> None:
        pipe = self._pipes[batch.by]
        if batch.seconds:
            ratio = (now - pipe.began(batch)) / batch.seconds
            self.slowness += BELIEVING * (min(max(ratio, 1 / FARTHEST), FARTHEST) - self.slowness)
        pipe.free_since = now
        pipe.batches.remove(batch)
        if not pipe.batches:
            del self._pipes[batch.by]

    def left_s(self, now: float) -> float:
        """Seconds until all of it has landed, for one replica after the other."""
        return sum(self._left_s(pipe, pipe.batches, now) for pipe in self._pipes.values())

    def _left_s(self, pipe: Pipe, batches: Sequence[Taken], now: float) -> float:
        first, *others = batches
        left_of_first = max(0.0, self.slowness * first.seconds - (now - pipe.began(first)))
        return left_of_first + self.slowness * sum(batch.seconds for batch in others)
