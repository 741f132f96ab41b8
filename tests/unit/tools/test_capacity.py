"""Speeds from a metrics page and from a file; latencies, numbers of replicas and rates from the simulation."""

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
    Target,
    Traffic,
    choose_speed,
    find_fewest,
    find_most,
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


def test_a_metrics_page_of_another_server_gives_no_models() -> None:
    assert parse_speeds("up 1\n") == []


def test_read_speeds_returns_the_written_speeds(tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    file.write_text(json.dumps({"speeds": [FAST.as_json(), SLOW.as_json()]}))
    assert read_speeds(file) == [FAST, SLOW]


@pytest.mark.parametrize("text", ["[]", "{}"])
def test_a_file_without_speeds_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"benchmarks\.engine speed"):
        read_speeds(file)


def test_choose_speed_takes_the_requested_model_or_the_first() -> None:
    assert (choose_speed([FAST, SLOW], None), choose_speed([FAST, SLOW], "n")) == (FAST, SLOW)
    with pytest.raises(ValueError, match="no speed of model 'x'; measured: m, n"):
        choose_speed([FAST, SLOW], "x")
    with pytest.raises(ValueError, match="no measured model"):
        choose_speed([], None)


def test_tokens_per_s_is_that_of_full_batches() -> None:
    # 64 rows of 8 tokens: 0.25 + 512 * 0.5 + 64 * 0.125 seconds.
    assert FAST.tokens_per_s(8) == pytest.approx(512 / 264.25)
    assert SLOW.tokens_per_s(500) == pytest.approx(64 / (1 + 128 + 3))


def speed(batch: float = 0.0, token: float = 0.0, row: float = 0.0, budget: int = 100) -> Speed:
    return Speed("m", "cpu", "float32", Cost(batch, token, row), budget)


def traffic(rate: float, rows: int = 1, tokens: int = 10) -> Traffic:
    return Traffic.alike(rate, rows, [tokens])


def test_a_request_alone_takes_as_long_as_its_batch() -> None:
    found = simulate(speed(batch=0.5, token=0.01, row=0.1), traffic(1e-6, tokens=20), 1, 100)
    assert found == pytest.approx([0.8] * 90)


def test_simultaneous_requests_fill_consecutive_batches() -> None:
    # Ten requests at once: the first and the second go alone into the two free slots, then up to five per batch.
    found = simulate(speed(batch=1.0, budget=50), traffic(1e12), 1, 10)
    assert found == pytest.approx([2, 3, 3, 3, 3, 3, 4, 4, 4])


def test_replicas_share_the_load() -> None:
    assert simulate(speed(batch=1.0, budget=10), traffic(1e12), 2, 4) == pytest.approx([1, 1, 2, 2])


def test_a_row_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    assert simulate(speed(token=0.01, budget=5), traffic(1e-6, tokens=20), 1, 10) == pytest.approx([0.2] * 9)


def test_a_request_of_many_rows_ends_with_its_last_row() -> None:
    found = simulate(speed(batch=1.0, budget=10), traffic(1e-9, rows=3), 1, 10)
    assert found == pytest.approx([3.0] * 9)


def test_a_simulation_is_determined_by_its_seed() -> None:
    def drawn(seed: int) -> list[float]:
        return simulate(speed(batch=0.01), traffic(90), 1, 100, seed)

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_a_point_beyond_capacity_has_no_latencies() -> None:
    there = simulate_point(speed(token=0.001), traffic(110), 1)
    assert there.used == pytest.approx(1.1)
    assert (there.p50, there.meets(Target(99.0))) == (None, False)


def test_latencies_include_the_time_of_the_http_process() -> None:
    there = simulate_point(speed(batch=0.5), traffic(1e-6), 1)
    assert (there.p50, there.p95, there.p99) == pytest.approx((0.5 + FRONT_S,) * 3)


def test_find_fewest_returns_the_smallest_number_that_meets_the_target() -> None:
    # A replica computes 100 requests/s. The rate needs ten replicas, the latency target needs more.
    fast, load = speed(token=0.001), traffic(950)
    best = find_fewest(fast, load, Target(0.05))
    assert best.meets(Target(0.05))
    assert best.replicas >= 10
    before, same, after = neighbours(fast, load, best)
    assert not before.meets(Target(0.05))
    assert same == best
    assert (before.replicas, after.replicas) == (best.replicas - 1, best.replicas + 1)


def test_neighbours_of_one_replica_have_no_smaller_number() -> None:
    best = find_fewest(speed(token=1e-6), traffic(10), Target(1.0))
    assert best.replicas == 1
    assert [one.replicas for one in neighbours(speed(token=1e-6), traffic(10), best)] == [1, 2]


def test_find_fewest_ends_when_no_number_meets_the_target() -> None:
    alone = find_fewest(speed(batch=0.5), traffic(10), Target(0.1))
    assert not alone.meets(Target(0.1))
    # Most rows are in time, but half of the requests have one that is late.
    mixed = find_fewest(speed(token=0.001, budget=2000), Traffic.alike(1.0, 50, [1] * 99 + [1000]), Target(0.5))
    assert not mixed.meets(Target(0.5))
    assert mixed.used <= IDLE


def test_requests_of_several_kinds_are_taken_in_turn() -> None:
    mixed = Traffic(1e-6, [[10], [10, 30]])
    assert (mixed.rows, mixed.row_tokens, mixed.tokens_per_s) == pytest.approx((1.5, 50 / 3, 25e-6))
    assert simulate(speed(token=0.01, budget=5), mixed, 1, 10) == pytest.approx([0.4, *[0.1, 0.4] * 4])


@pytest.mark.parametrize("target", [Target(0.05), Target(1.0, max_used=0.7)], ids=["latency", "utilisation"])
@pytest.mark.parametrize("replicas", [1, 4])
def test_the_greatest_rate_needs_the_replicas_that_it_was_computed_for(replicas: int, target: Target) -> None:
    fast, load = speed(batch=0.002, token=0.001, budget=200), traffic(1.0)
    rate = find_most(fast, load, replicas, target)
    assert find_fewest(fast, load.at(rate), target).replicas == replicas
    assert find_fewest(fast, load.at(1.05 * rate), target).replicas == replicas + 1


def test_the_greatest_rate_of_a_limited_utilisation_is_its_share_of_full_batches() -> None:
    # A replica computes 100 requests/s.
    assert find_most(speed(token=0.001), traffic(1.0), 2, Target(1.0, max_used=0.5)) == pytest.approx(100)


def test_no_rate_meets_a_target_below_the_time_of_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_most(speed(batch=0.5), traffic(1.0), 8, Target(0.1)) == 0
    # Half of the requests have a row that is late.
    monkeypatch.setattr("service.tools.capacity.NUM_REQUESTS", 500)
    assert find_most(speed(token=0.001, budget=2000), Traffic.alike(1.0, 50, [1] * 99 + [1000]), 8, Target(0.5)) == 0


def test_num_fronts_grows_with_the_request_rate() -> None:
    assert [num_fronts(traffic(rate)) for rate in (1, 1600, 1700, 5000)] == [1, 1, 2, 3]
