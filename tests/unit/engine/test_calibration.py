"""Calibration: batch sizes, repetitions and the end of the measurement."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from service.domain import Encoding, Step
from service.engine.calibration import LONGEST_S, LONGEST_STEP_S, measure, sizes
from service.errors import OutOfMemory
from tests.fakes import FakeClock, row


class Device:
    """A simulated device: `token_s` per token, and `first_s` more for the first run of a size."""

    def __init__(self, token_s: float, first_s: float = 0.0, max_tokens: int = 10**6) -> None:
        self.clock = FakeClock()
        self.ran: list[list[int]] = []
        self._token_s = token_s
        self._first_s = first_s
        self._max_tokens = max_tokens

    def run(self, encodings: Sequence[Encoding]) -> None:
        lengths = [each.num_tokens for each in encodings]
        if sum(lengths) > self._max_tokens:
            raise OutOfMemory("no more")
        is_first = lengths not in self.ran
        self.ran.append(lengths)
        self.clock.now += self._token_s * sum(lengths) + (self._first_s if is_first else 0.0)

    def measure(self) -> list[tuple[int, int]]:
        return [(step.tokens, step.rows) for step in self._steps()]

    def _steps(self) -> tuple[Step, ...]:
        steps = tuple(measure(self.run, lambda length: row(*[0] * length), 512, self.clock))
        for step in steps:
            assert step.seconds == pytest.approx(self._token_s * step.tokens)
        return steps


def test_sizes_double_with_long_rows_and_with_short_rows() -> None:
    assert list(sizes(512))[:7] == [(16, 16), (32, 32), (64, 64), (64, 32), (128, 128), (128, 32), (256, 128)]
    assert list(sizes(64))[3:6] == [(64, 32), (128, 32), (256, 32)], "no row is longer than the model's maximum"


def test_measure_stops_after_the_first_slow_step() -> None:
    device = Device(0.0026)
    assert device.measure() == [(16, 1), (32, 1), (64, 1), (64, 2), (128, 1)]
    assert device.ran[:2] == [[16], [16]], "a fast step is measured twice"
    assert device.ran.count([64]) == 1, "a slow step is measured once"
    assert LONGEST_STEP_S < 0.0026 * 128


def test_measure_stops_after_longest_s() -> None:
    device = Device(1e-3)
    started = device.clock.now
    device.measure()
    assert device.clock.now - started < LONGEST_S + 2 * LONGEST_STEP_S


def test_time_between_two_steps_is_not_measured() -> None:
    device = Device(1e-5)
    uninterrupted = device.measure()
    interrupted = []
    for step in measure(device.run, lambda length: row(*[0] * length), 512, device.clock):
        interrupted.append((step.tokens, step.rows))
        device.clock.now += LONGEST_S
    assert interrupted == uninterrupted


def test_the_first_run_of_a_size_is_not_measured() -> None:
    assert len(Device(1e-5, first_s=0.2).measure()) > 5


def test_measure_raises_out_of_memory_at_the_first_size_that_does_not_fit() -> None:
    device = Device(1e-6, max_tokens=100)
    with pytest.raises(OutOfMemory):
        device.measure()
    assert list(dict.fromkeys(map(tuple, device.ran))) == [(16,), (32,), (64,), (32, 32)]


def test_a_fast_device_is_measured_up_to_the_largest_size() -> None:
    assert Device(1e-7).measure()[-1] == (16_384, 512)
