"""How long each of several ways to compute the same takes on this device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from service.engine.self_test import first_line

Name = TypeVar("Name", bound=str)

NUM_TRIALS, MAX_TRIALS = 5, 100
"""The numbers of measurements of each way; the shortest time counts."""
SECONDS = 0.2
"""For this long more than the fewest are made: whatever else the machine does slows some of them down, not all."""


def time_each(
    runs: Mapping[Name, Callable[[], None]],
    on_failure: Callable[[Name, str], None],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, float]:
    """The seconds of each run that works; `on_failure` is called with the name of any other, and the reason.

    They are measured in turn, so that a slow moment is one of all.
    """
    seconds = dict.fromkeys(runs, math.inf)
    started = clock()
    for trial in range(1 + MAX_TRIALS):
        if trial == 1:  # the first time compiles kernels, which does not count
            seconds, started = dict.fromkeys(seconds, math.inf), clock()
        if trial > NUM_TRIALS and clock() - started >= SECONDS:
            break
        for name in list(seconds):
            try:
                seconds[name] = min(seconds[name], _seconds(runs[name], clock))
            except Exception as error:  # noqa: BLE001 - a missing compiler or kernel must not stop the service
                del seconds[name]
                on_failure(name, first_line(error))
    return seconds


def _seconds(run: Callable[[], None], clock: Callable[[], float]) -> float:
    started = clock()
    run()
    return clock() - started
