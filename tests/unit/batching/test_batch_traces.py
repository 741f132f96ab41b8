"""Batch traces: the tracer is called for every batch with its outcome, times and requests."""

from __future__ import annotations

import asyncio

import pytest

from service.batching.batch import Batch, BatchResult
from service.batching.batcher import Batcher
from service.batching.latency_model import LatencyModels
from service.domain import Encoding
from service.errors import ReplicaLost
from service.tracing import trace
from service.tracing.trace import BatchTrace
from tests.fakes import FakeClock, make_metrics, row, rows, total
from tests.unit.tracing.recording import RecordedTrace, RecordingTracer

pytestmark = pytest.mark.anyio
FIELDS = {"model": "m", "rows": 2, "tokens": 5, "replica": "cpu#2"}


class TimedReplica:
    """A replica that computes one batch in `seconds`, or loses it when `is_lost`, and closes the batcher."""

    name = "cpu#2"

    def __init__(self, clock: FakeClock, seconds: float, *, is_lost: bool = False) -> None:
        self._clock = clock
        self._seconds = seconds
        self._is_lost = is_lost
        self.batcher: Batcher | None = None

    async def run(self, batch: Batch) -> BatchResult:
        assert self.batcher
        self.batcher.close()
        self._clock.now += self._seconds
        if self._is_lost:
            raise ReplicaLost("gone")
        return BatchResult([total(encoding) for encoding in batch.encodings], 0.25)


async def trace_batch(
    replica: TimedReplica, clock: FakeClock, *requests: tuple[RecordedTrace, list[Encoding]]
) -> list[object]:
    """Submits the requests, each under its trace and 1 s before the batch. Returns the calls of the tracer."""
    tracer = RecordingTracer()
    metrics = make_metrics(replicas=("cpu#2",))
    batcher = Batcher(
        latency_models=LatencyModels(metrics=metrics), max_queue_tokens=99, metrics=metrics, tracer=tracer, clock=clock
    )
    replica.batcher = batcher
    waiting = []
    for mine, encodings in requests:
        token = trace.current.set(mine)
        waiting.append(asyncio.create_task(batcher.submit(encodings)))
        trace.current.reset(token)
    await asyncio.sleep(0)
    clock.now += 1
    await batcher.feed(replica)
    await asyncio.gather(*waiting, return_exceptions=True)
    return list(tracer.batches)


async def test_a_computed_batch_is_traced_with_its_times_and_requests() -> None:
    clock, one, other = FakeClock(), RecordedTrace(), RecordedTrace()
    encodings = rows(2, 3)
    batches = await trace_batch(TimedReplica(clock, 0.5), clock, (one, encodings), (other, encodings[1:]))
    assert batches == [(BatchTrace(0.5, 0.25, "", FIELDS), [(one, 1.5), (one, 1.5), (other, 1.5)])]


async def test_a_lost_batch_is_traced_with_its_error() -> None:
    clock, one = FakeClock(), RecordedTrace()
    [(traced, _)] = await trace_batch(TimedReplica(clock, 2.0, is_lost=True), clock, (one, rows(2, 3)))  # type: ignore[misc]
    assert traced == BatchTrace(2.0, 0.0, "ReplicaLost", FIELDS)


async def test_a_request_is_traced_under_its_own_trace() -> None:
    clock, mine = FakeClock(), RecordedTrace()
    [(traced, requests)] = await trace_batch(TimedReplica(clock, 0.5), clock, (mine, [row(1, 2)]))  # type: ignore[misc]
    assert traced.fields == {"model": "m", "rows": 1, "tokens": 2, "replica": "cpu#2"}
    assert [one for one, _ in requests] == [mine]
