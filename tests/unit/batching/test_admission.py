"""Admission: predicted wait, remaining time of the batches in flight, refusals and their Retry-After."""

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


def batch_of(seconds: float) -> Batch:
    return Batch("m", [], [], 0, seconds)


def test_left_s_subtracts_elapsed_time_only_from_the_computing_batch() -> None:
    in_flight = InFlightBatches()
    assert in_flight.left_s(0.0) == 0.0
    in_flight.take("a", batch_of(2.0), now=10.0)
    in_flight.take("a", batch_of(3.0), now=10.5)
    assert in_flight.left_s(11.0) == 1.0 + 3.0


def test_left_s_subtracts_elapsed_time_for_each_replica() -> None:
    in_flight = InFlightBatches()
    in_flight.take("a", batch_of(2.0), now=10.0)
    in_flight.take("b", batch_of(3.0), now=10.5)
    assert in_flight.left_s(11.0) == 1.0 + 2.5


def test_a_batch_starts_when_the_previous_one_finishes() -> None:
    in_flight = InFlightBatches()
    first = in_flight.take("a", batch_of(2.0), now=10.0)
    second = in_flight.take("a", batch_of(3.0), now=10.5)
    in_flight.finish(first, now=12.0)
    assert in_flight.left_s(13.0) == 2.0
    in_flight.finish(second, now=15.0)
    assert in_flight.left_s(16.0) == 0.0
    assert in_flight.slowness == 1.0, "both took as long as predicted"


def test_a_late_batch_counts_as_zero_time_left() -> None:
    in_flight = InFlightBatches()
    in_flight.take("a", batch_of(2.0), now=10.0)
    in_flight.take("a", batch_of(3.0), now=10.0)
    assert in_flight.left_s(100.0) == 3.0


def test_slowness_follows_the_ratio_of_actual_to_predicted_time() -> None:
    in_flight = InFlightBatches()
    first, second = in_flight.take("a", batch_of(2.0), now=10.0), in_flight.take("a", batch_of(2.0), now=10.0)
    in_flight.finish(first, now=13.0)
    assert in_flight.slowness == pytest.approx(1.05)
    assert in_flight.left_s(13.0) == pytest.approx(2.1)
    in_flight.finish(second, now=1000.0)
    assert in_flight.slowness == pytest.approx(1.05 + 0.1 * (MAX_SLOWNESS - 1.05)), "one stall has a limited effect"
    in_flight.finish(in_flight.take("a", batch_of(0.0), now=0.0), now=50.0)
    assert in_flight.slowness == pytest.approx(1.345), "a batch with no predicted time is ignored"


NOW = 100.0
TOKEN_S = 0.01


@dataclass
class AdmissionBench:
    """Admission in front of a bench's queue. A token costs 10 ms; a batch and a row have no fixed cost."""

    jobs: Bench = field(default_factory=Bench)
    in_flight: InFlightBatches = field(default_factory=InFlightBatches)
    metrics: Metrics = field(default_factory=make_metrics)
    num_replicas: int = 1
    is_measured: bool = True

    def check(self, *lengths: int, max_tokens: int = 1000, max_wait_s: float = 30.0, **options: Any) -> None:
        latency_models = LatencyModels(metrics=self.metrics, max_batch_tokens=100)
        if self.is_measured:
            latency_models.calibrate("cpu", "m", [Step(tokens, 1, tokens * TOKEN_S) for tokens in (16, 32, 64)])
        admission = Admission(
            self.jobs.queue,
            latency_models,
            self.in_flight,
            max_queue_tokens=max_tokens,
            max_wait_s=max_wait_s,
            metrics=self.metrics,
        )
        for number in range(self.num_replicas):
            self.in_flight.attach(f"cpu#{number}")
        try:
            self._check(admission, latency_models, lengths, RequestOptions(**options))
        finally:
            for number in range(self.num_replicas):
                self.in_flight.detach(f"cpu#{number}")

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


def test_an_empty_queue_admits_every_request() -> None:
    bench = AdmissionBench()
    bench.check(500, max_tokens=10)
    bench.check(500, max_wait_s=0.001)
    bench.check(500, deadline=NOW + 0.001)
    bench.check()


def test_a_full_queue_refuses_with_the_time_until_it_is_empty_as_retry_after() -> None:
    bench = AdmissionBench()
    bench.jobs.push(*[10] * 9)
    bench.check(10, max_tokens=100)
    assert bench.refusal(5, 6, max_tokens=100) == (QueueFull, pytest.approx(0.9))
    assert bench.count("queue_full") == 2
    bench.num_replicas = 2
    assert bench.refusal(11, max_tokens=100) == (QueueFull, pytest.approx(0.45))


def test_an_account_does_not_fill_the_queue_of_another() -> None:
    bench = AdmissionBench()
    bench.jobs.push(*[10] * 10, account="bulk")
    bench.check(50, max_tokens=100, account="live")
    assert bench.refusal(1, max_tokens=100, account="bulk")[0] is QueueFull


def test_a_request_is_refused_when_its_predicted_wait_exceeds_max_wait_s() -> None:
    bench = AdmissionBench()
    for _ in range(10):
        bench.jobs.push(10)
    bench.check(10, max_wait_s=1.0)
    bench.in_flight.take("cpu", batch_of(0.5), now=NOW)
    assert bench.refusal(10, 10, max_wait_s=1.0) == (QueueFull, pytest.approx(1.5))
    assert bench.count("wait_too_long") == 2


def test_the_predicted_wait_counts_only_tokens_ahead_of_the_request() -> None:
    bench = AdmissionBench()
    bench.jobs.push(*[10] * 50)
    bench.check(10, max_wait_s=0.2)
    assert bench.refusal(200, max_wait_s=0.2) == (QueueFull, pytest.approx(2.0)), "limited to its own 200 tokens"
    assert bench.refusal(10, max_wait_s=0.2, priority=-1) == (QueueFull, pytest.approx(5.0))
    bench.check(200, max_wait_s=0.2, priority=1)


@pytest.mark.parametrize(("left_s", "is_reached"), [(3.01, True), (2.99, False)])
def test_an_unreachable_deadline_is_refused_at_admission(left_s: float, is_reached: bool) -> None:
    """One second of tokens ahead, one second for its own batch, times a headroom of 1.5."""
    bench = AdmissionBench()
    for _ in range(10):
        bench.jobs.push(10)
    if is_reached:
        bench.check(30, deadline=NOW + left_s)
    else:
        assert bench.refusal(30, deadline=NOW + left_s) == (DeadlineUnreachable, pytest.approx(1.0))
    assert bench.count("deadline") == (0 if is_reached else 1)


def test_a_request_larger_than_a_batch_is_predicted_by_its_own_size() -> None:
    bench = AdmissionBench()
    bench.jobs.push(10)
    needed_s = HEADROOM * (0.1 + 3.0)
    bench.check(300, deadline=NOW + needed_s + 0.01)
    assert bench.refusal(300, deadline=NOW + needed_s - 0.01) == (DeadlineUnreachable, pytest.approx(0.1))


def test_slow_batches_increase_the_predicted_wait() -> None:
    bench = AdmissionBench()
    bench.jobs.push(*[10] * 10)
    for _ in range(100):
        bench.in_flight.finish(bench.in_flight.take("cpu", batch_of(1.0), now=NOW), now=NOW + 2.0)
    assert bench.in_flight.slowness == pytest.approx(2.0, abs=0.001)
    refused, retry_after_s = bench.refusal(100, max_wait_s=1.99)
    assert refused is QueueFull
    assert retry_after_s == pytest.approx(2.0, abs=0.001)


def test_admission_does_not_refuse_a_deadline_that_has_passed() -> None:
    bench = AdmissionBench()
    bench.jobs.push(10)
    bench.check(10, deadline=NOW)


def test_a_request_of_unknown_size_counts_as_an_average_waiting_row() -> None:
    bench = AdmissionBench()
    for length in (10, 30):
        bench.jobs.push(length)
    bench.check(max_tokens=60)
    assert bench.refusal(max_tokens=59) == (QueueFull, pytest.approx(0.4))
    assert bench.refusal(max_wait_s=0.3) == (QueueFull, pytest.approx(0.4))
    bench.check(deadline=NOW + 1.21)
    assert bench.refusal(deadline=NOW + 1.19) == (DeadlineUnreachable, pytest.approx(0.4))
    assert [bench.count(reason) for reason in ("queue_full", "wait_too_long", "deadline")] == [1, 1, 1]


def test_without_a_latency_model_only_the_token_limit_applies() -> None:
    bench = AdmissionBench(is_measured=False)
    bench.jobs.push(*[10] * 50)
    bench.check(10, max_wait_s=0.001, deadline=NOW + 0.001)
    assert bench.refusal(10, max_tokens=500) == (QueueFull, UNMEASURED_RETRY_S)


def test_retry_after_is_limited_to_max_retry_s() -> None:
    bench = AdmissionBench()
    bench.jobs.push(*[100] * 100)
    assert bench.refusal(10, max_tokens=500) == (QueueFull, MAX_RETRY_S)
