"""How long forwards of many sizes take on this device: what the latency model of the batcher starts from.

Knows no model: it is given something to run and something that makes rows. Sizes double until a forward is slow or all
together were; each is tried in long rows and in short ones: so what a row costs can be told from what a token costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from service.domain import Encoding, Step

LEAST_TOKENS, MOST_TOKENS = 16, 16_384
ROW_LENGTHS = (128, 32)

LONGEST_STEP_S = 0.3
"""Larger sizes than the first that takes so long are left out."""
LONGEST_S = 1.5
"""In all: this is done while nobody asks for anything, but somebody may."""
SHORT_S = 0.05
"""A forward this short is measured twice, and the shorter time counts."""
SURPRISING = 3.0
"""So many times the forward before, which had half the tokens: something was made for the new size, once. Again."""


def measure(
    run: Callable[[Sequence[Encoding]], object],
    make_row: Callable[[int], Encoding],
    max_length: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Step]:
    """Seconds of forwards with rows of `make_row(length)`, one after the other; `run` returns when the device is done.

    Time that passes between two steps is not counted. OutOfMemory of `run` ends it, and is the caller's to hear.
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
    """Tokens of a batch and tokens of each of its rows, in the order of measuring."""
    tokens = LEAST_TOKENS
    while tokens <= MOST_TOKENS:
        lengths = {min(tokens, length) for length in ROW_LENGTHS}
        yield from ((tokens, length) for length in sorted(lengths, reverse=True) if length <= max_length)
        tokens *= 2


def _time(
    run: Callable[[Sequence[Encoding]], object], rows: list[Encoding], before_s: float, clock: Callable[[], float]
) -> float:
    seconds = _once(run, rows, clock)
    if seconds < SHORT_S or seconds > SURPRISING * before_s:
        seconds = min(seconds, _once(run, rows, clock))
    return seconds


def _once(run: Callable[[Sequence[Encoding]], object], rows: list[Encoding], clock: Callable[[], float]) -> float:
    started = clock()
    run(rows)
    return clock() - started
