"""Calibration: measures forwards of many sizes on this device, the first data of the batcher's latency model.

Sizes double until one forward, or all of them together, took too long. Each size is measured in long and in short rows,
which separates the cost of a row from the cost of a token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from service.domain import Encoding, Step

MIN_TOKENS, MAX_TOKENS = 16, 16_384
ROW_LENGTHS = (128, 32)

LONGEST_STEP_S = 0.3
"""The calibration ends with the first forward that takes longer."""
LONGEST_S = 1.5
"""The limit of all forwards together: requests may arrive meanwhile."""
SHORT_S = 0.05
"""A shorter forward is measured twice, and the lower time counts."""
OUTLIER_FACTOR = 3.0
"""A forward that takes this many times as long as the one before, which had half the tokens, is measured again: kernels
may have been compiled for the new size."""


def measure(
    run: Callable[[Sequence[Encoding]], object],
    make_row: Callable[[int], Encoding],
    max_length: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Step]:
    """Measures forwards of rows of `make_row(length)`, one for each step; `run` returns when the device has finished.

    Time that passes between two steps is not counted. OutOfMemory of `run` is raised to the caller.
    """
    before_s = spent_s = 0.0
    for tokens, length in sizes(max_length):
        rows = [make_row(length)] * (tokens // length)
        started = clock()
        before_s = _time(run, rows, before_s, clock)
        spent_s += clock() - started
        yield Step(tokens, len(rows), before_s)
        if before_s > LONGEST_STEP_S or spent_s >= LONGEST_S:
            return


def sizes(max_length: int) -> Iterator[tuple[int, int]]:
    """(tokens of the batch, tokens of each of its rows), in the order in which they are measured."""
    tokens = MIN_TOKENS
    while tokens <= MAX_TOKENS:
        lengths = {min(tokens, length) for length in ROW_LENGTHS}
        yield from ((tokens, length) for length in sorted(lengths, reverse=True) if length <= max_length)
        tokens *= 2


def _time(
    run: Callable[[Sequence[Encoding]], object], rows: list[Encoding], before_s: float, clock: Callable[[], float]
) -> float:
    seconds = _once(run, rows, clock)
    if seconds < SHORT_S or seconds > OUTLIER_FACTOR * before_s:
        seconds = min(seconds, _once(run, rows, clock))
    return seconds


def _once(run: Callable[[Sequence[Encoding]], object], rows: list[Encoding], clock: Callable[[], float]) -> float:
    started = clock()
    run(rows)
    return clock() - started
