"""Speeds from a metrics page and from a file; latencies and numbers of replicas from the simulation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from service.batching.latency_model import Cost
from service.tools.capacity import (
    FRONT_S,
    IDLE,
    Speed,
    Traffic,
    choose_speed,
    find_fewest,
    neighbours,
    num_fronts,
    parse_speeds,
    read_speeds,
    simulate,
    simulate_point,
)
from tests.fakes import make_metrics

FAST = Speed("m", "cpu", "bfloat16", Cost(0.25, 0.5, 0.125), 512)
SLOW = Speed("n", "cpu", "bfloat16", Cost(1.0, 2.0, 3.0), 64)


def page() -> str:
    metrics = make_metrics(("m", "n", "unmeasured"))
    metrics.replica_holds("cpu", device="cpu", precisions={"m": "bfloat16", "n": "bfloat16"}, memory_bytes=1)
    for one in (FAST, SLOW):
        cost = one.cost
        metrics.costs(one.model, one.budget, batch_s=cost.batch, token_s=cost.token, row_s=cost.row)
    return generate_latest(metrics.registry).decode()


def test_a_metrics_page_gives_the_measured_models() -> None:
    assert parse_speeds(page()) == [FAST, SLOW]


def test_another_metrics_page_gives_none() -> None:
    assert parse_speeds("up 1\n") == []


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    file.write_text(json.dumps({"speeds": [FAST.as_json(), SLOW.as_json()]}))
    assert read_speeds(file) == [FAST, SLOW]


@pytest.mark.parametrize("text", ["[]", "{}"])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"benchmarks\.speed"):
        read_speeds(file)


def test_the_requested_model_is_chosen_or_the_first() -> None:
    assert (choose_speed([FAST, SLOW], None), choose_speed([FAST, SLOW], "n")) == (FAST, SLOW)
    with pytest.raises(ValueError, match="no speed of model 'x'; measured: m, n"):
        choose_speed([FAST, SLOW], "x")
    with pytest.raises(ValueError, match="no measured model"):
        choose_speed([], None)


def test_tokens_a_second_are_those_of_full_batches() -> None:
    # 64 rows of 8 tokens: 0.25 + 512 * 0.5 + 64 * 0.125 seconds.
    assert FAST.tokens_per_s(8) == pytest.approx(512 / 264.25)
    assert SLOW.tokens_per_s(500) == pytest.approx(64 / (1 + 128 + 3))


def speed(batch: float = 0.0, token: float = 0.0, row: float = 0.0, budget: int = 100) -> Speed:
    return Speed("m", "cpu", "float32", Cost(batch, token, row), budget)


def traffic(rate: float, rows: int = 1, tokens: int = 10) -> Traffic:
    return Traffic(rate, rows, [tokens])


def test_a_request_alone_takes_as_long_as_its_batch() -> None:
    found = simulate(speed(batch=0.5, token=0.01, row=0.1), traffic(1e-6, tokens=20), 1, 100)
    assert found == pytest.approx([0.8] * 90)


def test_requests_that_come_together_fill_batches_one_after_the_other() -> None:
    # Ten at once: the first alone, the second alone behind it (both places are free), then up to five at a time.
    found = simulate(speed(batch=1.0, budget=50), traffic(1e12), 1, 10)
    assert found == pytest.approx([2, 3, 3, 3, 3, 3, 4, 4, 4])


def test_replicas_share_the_load() -> None:
    assert simulate(speed(batch=1.0, budget=10), traffic(1e12), 2, 4) == pytest.approx([1, 1, 2, 2])


def test_a_row_longer_than_the_budget_goes_alone() -> None:
    assert simulate(speed(token=0.01, budget=5), traffic(1e-6, tokens=20), 1, 10) == pytest.approx([0.2] * 9)


def test_a_request_of_many_rows_ends_with_its_last() -> None:
    found = simulate(speed(batch=1.0, budget=10), traffic(1e-9, rows=3), 1, 10)
    assert found == pytest.approx([3.0] * 9)


def test_the_seed_decides() -> None:
    def drawn(seed: int) -> list[float]:
        return simulate(speed(batch=0.01), traffic(90), 1, 100, seed)

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_a_point_beyond_capacity_has_no_latencies() -> None:
    there = simulate_point(speed(token=0.001), traffic(110), 1)
    assert there.used == pytest.approx(1.1)
    assert (there.p50, there.meets(99.0)) == (None, False)


def test_the_front_adds_its_part() -> None:
    there = simulate_point(speed(batch=0.5), traffic(1e-6), 1)
    assert (there.p50, there.p95, there.p99) == pytest.approx((0.5 + FRONT_S,) * 3)


def test_the_fewest_replicas_are_found() -> None:
    # A replica computes 100 requests/s: ten are what the rate needs, more what the latency does.
    fast, load = speed(token=0.001), traffic(950)
    best = find_fewest(fast, load, 0.05)
    assert best.meets(0.05)
    assert best.replicas >= 10
    before, same, after = neighbours(fast, load, best)
    assert not before.meets(0.05)
    assert same == best
    assert (before.replicas, after.replicas) == (best.replicas - 1, best.replicas + 1)


def test_if_one_replica_is_enough_no_smaller_number_is_shown() -> None:
    best = find_fewest(speed(token=1e-6), traffic(10), 1.0)
    assert best.replicas == 1
    assert [one.replicas for one in neighbours(speed(token=1e-6), traffic(10), best)] == [1, 2]


def test_the_search_ends_if_no_number_meets_the_target() -> None:
    alone = find_fewest(speed(batch=0.5), traffic(10), 0.1)
    assert not alone.meets(0.1)
    # Most rows would be in time, but half of the requests have one that is not.
    mixed = find_fewest(speed(token=0.001, budget=2000), Traffic(1.0, 50, [1] * 99 + [1000]), 0.5)
    assert not mixed.meets(0.5)
    assert mixed.used <= IDLE


def test_more_requests_than_one_process_answers_need_more_services() -> None:
    assert [num_fronts(traffic(rate)) for rate in (1, 1600, 1700, 5000)] == [1, 1, 2, 3]
