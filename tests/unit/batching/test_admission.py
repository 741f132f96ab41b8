"""What batches in flight still take, by a clock that is passed in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from service.batching.admission import (
    HEADROOM,
    MAX_RETRY_S,
    MAX_SLOWNESS,
    UNMEASURED_RETRY_S,
    Admission,
    InFlightBatches,
)
from service.batching.batch import Batch
from service.batching.latency_model import LatencyModels
from service.domain import RequestOptions, Step
from service.errors import DeadlineUnreachable, QueueFull, ServiceError
from service.metrics import Metrics
from tests.fakes import make_metrics, value
from tests.unit.batching.bench import Bench


def expected(seconds: float) -> Batch:
    return Batch("m", [], [], 0, seconds)


def test_what_computes_has_begun_and_what_waits_has_not() -> None:
    flying = InFlightBatches()
    assert flying.left_s(0.0) == 0.0
    flying.take("a", expected(2.0), now=10.0)
    flying.take("a", expected(3.0), now=10.5)
    assert flying.left_s(11.0) == 1.0 + 3.0


def test_replicas_compute_side_by_side() -> None:
    flying = InFlightBatches()
    flying.take("a", expected(2.0), now=10.0)
    flying.take("b", expected(3.0), now=10.5)
    assert flying.left_s(11.0) == 1.0 + 2.5


def test_the_next_begins_when_the_one_before_has_landed() -> None:
    flying = InFlightBatches()
    first = flying.take("a", expected(2.0), now=10.0)
    second = flying.take("a", expected(3.0), now=10.5)
    flying.finish(first, now=12.0)
    assert flying.left_s(13.0) == 2.0
    flying.finish(second, now=15.0)
    assert flying.left_s(16.0) == 0.0
    assert flying.slowness == 1.0, "both took as long as they should"


def test_a_batch_that_is_late_may_land_any_moment() -> None:
    flying = InFlightBatches()
    flying.take("a", expected(2.0), now=10.0)
    flying.take("a", expected(3.0), now=10.0)
    assert flying.left_s(100.0) == 3.0


def test_how_much_longer_batches_take_is_learnt() -> None:
    flying = InFlightBatches()
    first, second = flying.take("a", expected(2.0), now=10.0), flying.take("a", expected(2.0), now=10.0)
    flying.finish(first, now=13.0)
    assert flying.slowness == pytest.approx(1.05)
    assert flying.left_s(13.0) == pytest.approx(2.1)
    flying.finish(second, now=1000.0)
    assert flying.slowness == pytest.approx(1.05 + 0.1 * (MAX_SLOWNESS - 1.05)), "one stall is not the rule"
    flying.finish(flying.take("a", expected(0.0), now=0.0), now=50.0)
    assert flying.slowness == pytest.approx(1.345), "nothing was expected, so nothing is learnt"


NOW = 100.0
TOKEN_S = 0.01


@dataclass
class Door:
    """An admission to the queue of a bench; a token takes a hundredth of a second, and batches and rows take
    nothing."""

    bench: Bench = field(default_factory=Bench)
    flying: InFlightBatches = field(default_factory=InFlightBatches)
    metrics: Metrics = field(default_factory=make_metrics)
    num_replicas: int = 1
    is_measured: bool = True

    def check(self, *lengths: int, max_tokens: int = 1000, max_wait_s: float = 30.0, **options: Any) -> None:
        latency_models = LatencyModels(metrics=self.metrics, max_batch_tokens=100)
        if self.is_measured:
            latency_models.calibrate("cpu", "m", [Step(tokens, 1, tokens * TOKEN_S) for tokens in (16, 32, 64)])
        admission = Admission(
            self.bench.queue,
            latency_models,
            self.flying,
            max_queue_tokens=max_tokens,
            max_wait_s=max_wait_s,
            metrics=self.metrics,
        )
        for number in range(self.num_replicas):
            self.flying.attach(f"cpu#{number}")
        try:
            self._check(admission, latency_models, lengths, RequestOptions(**options))
        finally:
            for number in range(self.num_replicas):
                self.flying.detach(f"cpu#{number}")

    def _check(
        self, admission: Admission, latency_models: LatencyModels, lengths: tuple[int, ...], options: RequestOptions
    ) -> None:
        if not lengths:
            admission.check(options, NOW)
            return
        num_tokens, num_rows = sum(lengths), len(lengths)
        expected_s = latency_models.predict("m", num_tokens, num_rows)
        admission.check(options, NOW, num_tokens=num_tokens, num_rows=num_rows, expected_s=expected_s)

    def refusal(self, *lengths: int, **options: Any) -> tuple[type[ServiceError], float | None]:
        with pytest.raises(ServiceError) as refused:
            self.check(*lengths, **options)
        return type(refused.value), refused.value.retry_after_s

    def count(self, reason: str) -> float:
        return value(self.metrics, "jobs_refused_total", reason=reason)


def test_an_empty_queue_lets_everybody_in() -> None:
    door = Door()
    door.check(500, max_tokens=10)
    door.check(500, max_wait_s=0.001)
    door.check(500, deadline=NOW + 0.001)
    door.check()


def test_a_full_queue_refuses_with_the_time_until_it_is_empty() -> None:
    door = Door()
    door.bench.push(*[10] * 9)
    door.check(10, max_tokens=100)
    assert door.refusal(5, 6, max_tokens=100) == (QueueFull, pytest.approx(0.9))
    assert door.count("queue_full") == 2
    door.num_replicas = 2
    assert door.refusal(11, max_tokens=100) == (QueueFull, pytest.approx(0.45))


def test_an_account_does_not_fill_the_queue_of_another() -> None:
    door = Door()
    door.bench.push(*[10] * 10, account="bulk")
    door.check(50, max_tokens=100, account="live")
    assert door.refusal(1, max_tokens=100, account="bulk")[0] is QueueFull


def test_who_would_wait_too_long_is_refused() -> None:
    door = Door()
    for _ in range(10):
        door.bench.push(10)
    door.check(10, max_wait_s=1.0)
    door.flying.take("cpu", expected(0.5), now=NOW)
    assert door.refusal(10, 10, max_wait_s=1.0) == (QueueFull, pytest.approx(1.5))
    assert door.count("wait_too_long") == 2


def test_the_wait_is_that_of_what_goes_before() -> None:
    door = Door()
    door.bench.push(*[10] * 50)
    door.check(10, max_wait_s=0.2)
    assert door.refusal(200, max_wait_s=0.2) == (QueueFull, pytest.approx(2.0)), "as many tokens as it has itself"
    assert door.refusal(10, max_wait_s=0.2, priority=-1) == (QueueFull, pytest.approx(5.0))
    door.check(200, max_wait_s=0.2, priority=1)


@pytest.mark.parametrize(("left_s", "is_reached"), [(3.01, True), (2.99, False)])
def test_a_deadline_that_cannot_be_kept_is_told_at_once(left_s: float, is_reached: bool) -> None:
    """A second for what is before it, another for the batch that it is in, and half as much again to be sure."""
    door = Door()
    for _ in range(10):
        door.bench.push(10)
    if is_reached:
        door.check(30, deadline=NOW + left_s)
    else:
        assert door.refusal(30, deadline=NOW + left_s) == (DeadlineUnreachable, pytest.approx(1.0))
    assert door.count("deadline") == (0 if is_reached else 1)


def test_a_request_of_its_own_size_counts_where_that_is_more_than_a_batch() -> None:
    door = Door()
    door.bench.push(10)
    needed_s = HEADROOM * (0.1 + 3.0)
    door.check(300, deadline=NOW + needed_s + 0.01)
    assert door.refusal(300, deadline=NOW + needed_s - 0.01) == (DeadlineUnreachable, pytest.approx(0.1))


def test_batches_that_land_late_make_the_wait_longer() -> None:
    door = Door()
    door.bench.push(*[10] * 10)
    for _ in range(100):
        door.flying.finish(door.flying.take("cpu", expected(1.0), now=NOW), now=NOW + 2.0)
    assert door.flying.slowness == pytest.approx(2.0, abs=0.001)
    refused, retry_after_s = door.refusal(100, max_wait_s=1.99)
    assert refused is QueueFull
    assert retry_after_s == pytest.approx(2.0, abs=0.001)


def test_a_deadline_that_has_passed_is_not_refused_here() -> None:
    door = Door()
    door.bench.push(10)
    door.check(10, deadline=NOW)


def test_a_request_that_is_not_read_yet_is_taken_for_a_row_as_they_wait() -> None:
    door = Door()
    for length in (10, 30):
        door.bench.push(length)
    door.check(max_tokens=60)
    assert door.refusal(max_tokens=59) == (QueueFull, pytest.approx(0.4))
    assert door.refusal(max_wait_s=0.3) == (QueueFull, pytest.approx(0.4))
    door.check(deadline=NOW + 1.21)
    assert door.refusal(deadline=NOW + 1.19) == (DeadlineUnreachable, pytest.approx(0.4))
    assert [door.count(reason) for reason in ("queue_full", "wait_too_long", "deadline")] == [1, 1, 1]


def test_before_anything_was_measured_only_tokens_count() -> None:
    door = Door(is_measured=False)
    door.bench.push(*[10] * 50)
    door.check(10, max_wait_s=0.001, deadline=NOW + 0.001)
    assert door.refusal(10, max_tokens=500) == (QueueFull, UNMEASURED_RETRY_S)


def test_nobody_is_told_to_stay_away_for_long() -> None:
    door = Door()
    door.bench.push(*[100] * 100)
    assert door.refusal(10, max_tokens=500) == (QueueFull, MAX_RETRY_S)
