"""How long each of several ways to compute the same takes on this device."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import TypeVar

import torch

from service.engine.device import Call, CudaRecorder
from service.engine.self_test import first_line

logger = logging.getLogger(__name__)

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


def as_served(make: Callable[[], Call], device: torch.device) -> Callable[[], None]:
    """A run of what `make` makes in the first one. On a GPU it repeats a graph of it, as most batches are computed: how
    long the host takes to launch its kernels does not count, unless they cannot be recorded."""
    return launched(cache(lambda: _recorded(make()) if device.type == "cuda" else make()), device)


def launched(make: Callable[[], Call], device: torch.device) -> Callable[[], None]:
    """A run that makes a call, calls it, and waits for the device, which is the current one."""

    @torch.inference_mode()
    def run() -> None:
        make()()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def _recorded(call: Call) -> Call:
    try:
        return CudaRecorder()(call)
    except Exception as error:  # noqa: BLE001 - what cannot be recorded is launched
        logger.warning("a trial cannot be recorded", extra={"reason": first_line(error)})
        return call
