"""Overload in simulated time: the real queue and admission in front of a simulated device."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

import numpy as np
import pytest

from service.batching.admission import Admission, InFlightBatch, InFlightBatches
from service.batching.batch import Batch
from service.batching.jobs import Job, PendingRequest
from service.batching.latency_model import Cost, LatencyModels
from service.batching.queue import Queue
from service.domain import Output, RequestOptions, Step
from service.errors import ServiceError
from service.metric_labels import DropReason
from tests.fakes import make_metrics, rows

COST = Cost(batch=0.004, token=70e-6, row=50e-6)
LENGTH = 40
SECONDS = 8.0
DEADLINE_S = 1.0
DEPTH = 2
OUTPUT = Output(np.zeros((1, 1), dtype=np.float32))

Landing = tuple[float, int, float, Batch, InFlightBatch]


@dataclass
class Device:
    """A simulated replica and the outcomes of its requests.

    A batch takes `slow` times its cost, with log-normal `noise`, plus `lag_s` that the latency model does not see.
    """

    slow: float = 1.0
    noise: float = 0.0
    lag_s: float = 0.0
    now: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._rng = random.Random(1)
        self._latency_models = LatencyModels(metrics=make_metrics())
        self._latency_models.calibrate("cpu", "m", [Step(n, n // 16, COST.of(n, n // 16)) for n in (16, 64, 256, 1024)])
        self._queue = Queue(latency_models=self._latency_models, max_age_s=2.0, on_dropped=self._drop)
        self._in_flight = InFlightBatches()
        self._admission = Admission(
            self._queue,
            self._latency_models,
            self._in_flight,
            max_queue_tokens=262_144,
            max_wait_s=30.0,
            metrics=make_metrics(),
        )
        self._numbers = count()
        self._landings: list[Landing] = []
        self._free = 0.0

    @property
    def capacity(self) -> float:
        """Requests a second, in full batches."""
        full = self._latency_models.budget("m")
        num_rows = full / LENGTH
        return num_rows / (self.slow * COST.of(full, round(num_rows)) + self.lag_s)

    def serve(self, times: float) -> None:
        next_arrival = self._rng.expovariate(times * self.capacity)
        while next_arrival < SECONDS or self._landings:
            if next_arrival < SECONDS and (not self._landings or next_arrival <= self._landings[0][0]):
                self.now = next_arrival
                self._submit()
                next_arrival += self._rng.expovariate(times * self.capacity)
            else:
                self._land()
            while len(self._landings) < DEPTH and (batch := self._queue.take(self.now)):
                self._take(batch)

    def _submit(self) -> None:
        options = RequestOptions(self.now + DEADLINE_S)
        encodings = rows(LENGTH)
        try:
            expected_s = self._latency_models.predict("m", LENGTH, 1)
            self._admission.check(options, self.now, num_tokens=LENGTH, num_rows=1, expected_s=expected_s)
        except ServiceError as refusal:
            self.outcomes[refusal.code] += 1
            return
        pending = PendingRequest(encodings, self.now, options)
        self._queue.push([Job(encodings[0], self.now, [(pending, 0)])], options)

    def _take(self, batch: Batch) -> None:
        taken = self._in_flight.take("cpu", batch, self.now)
        seconds = self.slow * COST.of(batch.num_tokens, len(batch.jobs)) * self._rng.lognormvariate(0, self.noise)
        self._free = max(self.now, self._free) + seconds + self.lag_s
        heappush(self._landings, (self._free, next(self._numbers), seconds, batch, taken))

    def _land(self) -> None:
        self.now, _, seconds, batch, taken = heappop(self._landings)
        self._in_flight.finish(taken, self.now)
        self._latency_models.note("m", batch.num_tokens, len(batch.jobs), seconds)
        for job in batch.jobs:
            job.settle(OUTPUT, seconds, self.now)
            for pending, _ in job.waiters:
                deadline = pending.options.deadline
                is_in_time = pending.closed == "answered" and deadline is not None and self.now <= deadline
                self.outcomes["in time" if is_in_time else "late"] += 1

    def _drop(self, reason: DropReason, jobs: Sequence[Job]) -> None:
        self.outcomes["late"] += len(jobs)


@pytest.mark.parametrize(
    "how",
    [{}, {"slow": 2.0}, {"lag_s": 0.05}, {"noise": 0.3, "lag_s": 0.02}],
    ids=["as measured", "twice as slow", "unmeasured lag", "noisy"],
)
def test_admitted_requests_meet_their_deadline_at_ten_times_the_capacity(how: dict[str, float]) -> None:
    device = Device(**how)
    device.serve(times=10.0)
    in_time, late, refused = (device.outcomes[each] for each in ("in time", "late", "deadline_unreachable"))
    assert in_time + late + refused == device.outcomes.total()
    assert in_time >= 0.9 * device.capacity * SECONDS
    assert in_time >= 0.99 * (in_time + late)
    assert refused >= 0.8 * device.outcomes.total()


def test_no_request_is_refused_at_half_the_capacity() -> None:
    device = Device(noise=0.3)
    device.serve(times=0.5)
    assert device.outcomes["in time"] == device.outcomes.total() > 0.4 * device.capacity * SECONDS
