"""How long each of several ways to compute the same takes on this device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from service.engine.self_test import first_line

Name = TypeVar("Name", bound=str)

NUM_TRIALS = 5
"""The number of measurements of each way; the shortest time counts."""


def time_each(
    runs: Mapping[Name, Callable[[], None]],
    on_failure: Callable[[Name, str], None],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, float]:
    """The seconds of each run that works; `on_failure` is called with the name of any other, and the reason."""
    seconds: dict[Name, float] = {}
    for name, run in runs.items():
        try:
            run()  # compiles kernels, which does not count
            seconds[name] = min(_seconds(run, clock) for _ in range(NUM_TRIALS))
        except Exception as error:  # noqa: BLE001 - a missing compiler or kernel must not stop the service
            on_failure(name, first_line(error))
    return seconds


def _seconds(run: Callable[[], None], clock: Callable[[], float]) -> float:
    started = clock()
    run()
    return clock() - started
