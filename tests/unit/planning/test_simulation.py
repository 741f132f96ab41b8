"""Simulated replicas, by cases that can be computed by hand."""

from __future__ import annotations

import pytest

from service.batching.latency_model import Cost
from service.planning.plan import FRONT_S, IDLE, around, fewest, num_fronts, point
from service.planning.simulation import Traffic, latencies
from service.planning.speed import Speed


def speed(batch: float = 0.0, token: float = 0.0, row: float = 0.0, budget: int = 100) -> Speed:
    return Speed("m", "cpu", "float32", Cost(batch, token, row), budget)


def traffic(rate: float, rows: int = 1, tokens: int = 10) -> Traffic:
    return Traffic(rate, rows, [tokens])


def test_a_request_alone_takes_as_long_as_its_batch() -> None:
    found = latencies(speed(batch=0.5, token=0.01, row=0.1), traffic(1e-6, tokens=20), 1, 100)
    assert found == pytest.approx([0.8] * 90)


def test_requests_that_come_together_fill_batches_one_after_the_other() -> None:
    # Ten at once: the first alone, the second alone behind it (both places are free), then up to five at a time.
    found = latencies(speed(batch=1.0, budget=50), traffic(1e12), 1, 10)
    assert found == pytest.approx([2, 3, 3, 3, 3, 3, 4, 4, 4])


def test_replicas_share_the_load() -> None:
    assert latencies(speed(batch=1.0, budget=10), traffic(1e12), 2, 4) == pytest.approx([1, 1, 2, 2])


def test_a_row_longer_than_the_budget_goes_alone() -> None:
    assert latencies(speed(token=0.01, budget=5), traffic(1e-6, tokens=20), 1, 10) == pytest.approx([0.2] * 9)


def test_a_request_of_many_rows_ends_with_its_last() -> None:
    found = latencies(speed(batch=1.0, budget=10), traffic(1e-9, rows=3), 1, 10)
    assert found == pytest.approx([3.0] * 9)


def test_the_seed_decides() -> None:
    def drawn(seed: int) -> list[float]:
        return latencies(speed(batch=0.01), traffic(90), 1, 100, seed)

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_a_point_beyond_capacity_has_no_latencies() -> None:
    there = point(speed(token=0.001), traffic(110), 1)
    assert there.used == pytest.approx(1.1)
    assert (there.p50, there.keeps(99.0)) == (None, False)


def test_the_front_adds_its_part() -> None:
    there = point(speed(batch=0.5), traffic(1e-6), 1)
    assert (there.p50, there.p95, there.p99) == pytest.approx((0.5 + FRONT_S,) * 3)


def test_the_fewest_replicas_are_found() -> None:
    # A replica computes 100 requests/s: ten are what the rate needs, more what the latency does.
    fast, load = speed(token=0.001), traffic(950)
    best = fewest(fast, load, 0.05)
    assert best.keeps(0.05)
    assert best.replicas >= 10
    before, same, after = around(fast, load, best)
    assert not before.keeps(0.05)
    assert same == best
    assert (before.replicas, after.replicas) == (best.replicas - 1, best.replicas + 1)


def test_where_one_is_enough_there_is_none_fewer() -> None:
    best = fewest(speed(token=1e-6), traffic(10), 1.0)
    assert best.replicas == 1
    assert [one.replicas for one in around(speed(token=1e-6), traffic(10), best)] == [1, 2]


def test_a_wish_that_no_number_meets_ends() -> None:
    alone = fewest(speed(batch=0.5), traffic(10), 0.1)
    assert not alone.keeps(0.1)
    # Most rows would be in time, but half of the requests have one that is not.
    mixed = fewest(speed(token=0.001, budget=2000), Traffic(1.0, 50, [1] * 99 + [1000]), 0.5)
    assert not mixed.keeps(0.5)
    assert mixed.used <= IDLE


def test_more_requests_than_one_process_answers_need_more_services() -> None:
    assert [num_fronts(traffic(rate)) for rate in (1, 1600, 1700, 5000)] == [1, 1, 2, 3]
