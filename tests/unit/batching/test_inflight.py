"""What batches in flight still take, by a clock that is passed in."""

from __future__ import annotations

import pytest

from service.batching.inflight import FARTHEST, InFlight


def test_what_computes_has_begun_and_what_waits_has_not() -> None:
    flying = InFlight()
    assert flying.left_s(0.0) == 0.0
    flying.take("a", 2.0, now=10.0)
    flying.take("a", 3.0, now=10.5)
    assert flying.left_s(11.0) == 1.0 + 3.0


def test_replicas_compute_side_by_side() -> None:
    flying = InFlight()
    flying.take("a", 2.0, now=10.0)
    flying.take("b", 3.0, now=10.5)
    assert flying.left_s(11.0) == 1.0 + 2.5


def test_the_next_begins_when_the_one_before_has_landed() -> None:
    flying = InFlight()
    first = flying.take("a", 2.0, now=10.0)
    second = flying.take("a", 3.0, now=10.5)
    flying.land(first, now=12.0)
    assert flying.left_s(13.0) == 2.0
    flying.land(second, now=15.0)
    assert flying.left_s(16.0) == 0.0
    assert flying.slowness == 1.0, "both took as long as they should"


def test_a_batch_that_is_late_may_land_any_moment() -> None:
    flying = InFlight()
    flying.take("a", 2.0, now=10.0)
    flying.take("a", 3.0, now=10.0)
    assert flying.left_s(100.0) == 3.0


def test_how_much_longer_batches_take_is_learnt() -> None:
    flying = InFlight()
    first, second = flying.take("a", 2.0, now=10.0), flying.take("a", 2.0, now=10.0)
    flying.land(first, now=13.0)
    assert flying.slowness == pytest.approx(1.05)
    assert flying.left_s(13.0) == pytest.approx(2.1)
    flying.land(second, now=1000.0)
    assert flying.slowness == pytest.approx(1.05 + 0.1 * (FARTHEST - 1.05)), "one stall is not the rule"
    flying.land(flying.take("a", 0.0, now=0.0), now=50.0)
    assert flying.slowness == pytest.approx(1.345), "nothing was expected, so nothing is learnt"
