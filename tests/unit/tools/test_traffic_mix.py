"""The mix of a server's requests: tasks, inputs and tokens from its own metrics, and requests drawn from it."""

from __future__ import annotations

import random

import pytest
from prometheus_client import generate_latest

from service.batching.latency_model import Cost
from service.domain import Timing
from service.tools.bench.texts import Lengths
from service.tools.capacity import Speed
from service.tools.traffic_mix import (
    MAX_ROW_TOKENS,
    Mix,
    TaskTraffic,
    find_busiest,
    quantile,
    read_mix,
    weigh_tokens,
)
from tests.fakes import make_metrics

SPREAD = Lengths.parse("lognormal:31:152")


def page() -> str:
    """100 requests of one input and 40 tokens, 25 of 8 inputs and 400 tokens and partly of a second model, 1 failed."""
    metrics = make_metrics(("m", "n"))
    for task, count, inputs, tokens in (("classify", 100, 1, 40), ("embed", 25, 8, 400)):
        for _ in range(count):
            metrics.encoded(task, "m", inputs=inputs, tokens=tokens, truncated=0)
            metrics.answered(task, "m", inputs, Timing(0, 0, 0, 0), [])
    metrics.encoded("embed", "n", inputs=0, tokens=7, truncated=0)
    metrics.request_done("mrc", "m", 503, 0.1)
    return generate_latest(metrics.registry).decode()


def speed(model: str, token_s: float) -> Speed:
    return Speed(model, "cpu", "float32", Cost(0.0, token_s, 0.0), 500)


def read(model: str) -> Mix:
    mix = read_mix(page(), model)
    assert mix is not None
    return mix


def test_the_tasks_of_a_mix_have_requests_inputs_and_tokens() -> None:
    mix = read("m")
    found = [(one.task, one.num_requests, one.inputs_per_request, one.tokens_per_request) for one in mix.tasks]
    assert found == [("classify", 100, 1, 40), ("embed", 25, 8, 400)]
    assert mix.tokens_per_request == pytest.approx((100 * 40 + 25 * 400) / 125)
    assert mix.not_counted == ["n"]


def test_tokens_of_another_model_are_counted_by_their_time() -> None:
    slow, fast = speed("n", 0.004), speed("m", 0.001)
    weights = weigh_tokens(fast, [fast, slow])
    assert weights == pytest.approx({"n": 4})
    mix = read_mix(page(), "m", weights)
    assert mix is not None
    assert (mix.weights, mix.not_counted) == (pytest.approx({"n": 4}), [])
    assert mix.tasks[1].tokens_per_request == pytest.approx(400 + 4 * 7 / 25)


def test_a_replica_carries_as_many_requests_in_tokens_of_either_model() -> None:
    slow, fast = speed("n", 0.004), speed("m", 0.001)
    rates = []
    for one, other in ((fast, slow), (slow, fast)):
        mix = read_mix(page(), one.model, weigh_tokens(one, [other]))
        assert mix is not None
        rates.append(one.tokens_per_s(50) / mix.tokens_per_request)
    assert rates[0] == pytest.approx(rates[1])


def test_the_busiest_model_is_the_one_whose_tokens_took_the_longest_time() -> None:
    # 14,000 tokens of m, 7 of n.
    assert find_busiest(page(), [speed("n", 1.0), speed("m", 0.001)]) == speed("m", 0.001)
    assert find_busiest(page(), [speed("n", 10.0), speed("m", 0.001)]) == speed("n", 10.0)
    assert find_busiest(page(), [speed("unknown", 1.0)]) is None


def test_a_model_without_requests_has_no_mix() -> None:
    assert read_mix(page(), "unknown") is None
    assert read_mix("up 1\n", "m") is None


def test_a_page_in_another_format_is_an_error() -> None:
    with pytest.raises(ValueError, match="not in Prometheus' text format"):
        read_mix("<html>", "m")


def test_the_inputs_of_a_request_have_percentiles_from_the_histogram() -> None:
    embed = read("m").tasks[1]
    assert (embed.inputs_at(0.5), embed.inputs_at(0.95)) == pytest.approx((6, 7.8))


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.75, 1.5), (1.0, 2.0)], ids=lambda value: f"{value:g}"
)
def test_a_quantile_is_linear_within_its_bucket(share: float, value: float) -> None:
    assert quantile([(1.0, 5.0), (2.0, 10.0), (float("inf"), 10.0)], share) == pytest.approx(value)


def test_a_quantile_above_the_last_bound_is_that_bound() -> None:
    assert quantile([(1.0, 5.0), (float("inf"), 10.0)], 0.9) == 1.0


def test_a_histogram_without_observations_has_no_quantile() -> None:
    assert quantile([(1.0, 0.0), (float("inf"), 0.0)], 0.5) == 0.0


def test_requests_drawn_from_a_mix_have_its_means() -> None:
    mix = read("m")
    traffic = mix.traffic(10.0, 4096, SPREAD, random.Random(1))
    assert len(traffic.requests) == pytest.approx(4096, abs=2)
    assert traffic.tokens_per_s == pytest.approx(10 * mix.tokens_per_request, rel=0.02)
    assert traffic.rows == pytest.approx((100 * 1 + 25 * 8) / 125, rel=0.03)


def test_an_input_longer_than_a_row_is_several_rows() -> None:
    long = Mix("m", [TaskTraffic("mrc", 10, 10, 10 * 1200, {1.0: 10.0, float("inf"): 10.0})])
    traffic = long.traffic(1.0, 200, SPREAD, random.Random(1))
    assert {len(request) for request in traffic.requests} == {3}
    assert max(traffic.row_lengths) <= MAX_ROW_TOKENS
    assert traffic.tokens_per_s == pytest.approx(1200, rel=0.02)


def test_a_mix_is_determined_by_its_seed() -> None:
    def draw(seed: int) -> object:
        return read("m").traffic(1.0, 50, SPREAD, random.Random(seed)).requests

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
