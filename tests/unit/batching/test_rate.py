"""The measured drain rate."""

from __future__ import annotations

import pytest

from service.batching.rate import LONGEST_S, UNMEASURED_S, DrainRate


def test_nothing_measured() -> None:
    assert DrainRate().seconds_for(1000) == UNMEASURED_S


def test_tokens_over_the_measured_rate() -> None:
    rate = DrainRate()
    rate.note(100, taken=0.0, landed=1.0)
    assert rate.seconds_for(250) == pytest.approx(2.5)


def test_idle_time_does_not_count_and_overlap_counts_once() -> None:
    rate = DrainRate()
    rate.note(100, taken=0.0, landed=1.0)
    rate.note(100, taken=100.0, landed=101.0)
    assert rate.seconds_for(100) == pytest.approx(1.0)
    rate.note(100, taken=200.0, landed=201.0)
    rate.note(100, taken=200.0, landed=201.0)
    assert rate.seconds_for(100) < 1.0


def test_nobody_is_told_to_wait_for_ever() -> None:
    rate = DrainRate()
    rate.note(1, taken=0.0, landed=10.0)
    assert rate.seconds_for(10**6) == LONGEST_S
