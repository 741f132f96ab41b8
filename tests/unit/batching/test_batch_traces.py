"""The tracer hears of every batch: how it ended, and who was in it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from service.batching.batch import BatchResult
from service.batching.batcher import Batcher, traced
from service.batching.jobs import Job, PendingRequest
from service.batching.latency_model import LatencyModels
from service.domain import Encoding
from service.errors import ReplicaLost
from service.tracing import trace
from service.tracing.trace import BatchTrace
from tests.fakes import FakeClock, make_metrics, row, rows, total
from tests.unit.tracing.recording import RecordedTrace, RecordingTracer

pytestmark = pytest.mark.anyio
FIELDS = {"model": "m", "rows": 2, "tokens": 5, "replica": ""}


def jobs(clock: FakeClock, *traces: RecordedTrace) -> list[Job]:
    """One row of 2 tokens, and another of 3 that all of these requests wait for."""
    encodings = rows(2, 3)
    pending = [PendingRequest(encodings, clock.now - 1, print, trace=one) for one in traces]
    return [
        Job(encodings[0], clock.now - 1, [(pending[0], 0)]),
        Job(encodings[1], clock.now - 1, [(pending, 1) for pending in pending]),
    ]


async def test_a_batch_that_was_computed_is_told_with_its_times_and_its_requests() -> None:
    clock, tracer, one, other = FakeClock(), RecordingTracer(), RecordedTrace(), RecordedTrace()
    batch = jobs(clock, one, other)

    async def run(encodings: Sequence[Encoding]) -> BatchResult:
        clock.now += 0.5
        return BatchResult([total(encoding) for encoding in encodings], 0.25)

    ran = await traced(tracer, clock, run, batch, 5)
    assert len(ran.outputs) == 2
    assert tracer.batches == [(BatchTrace(0.5, 0.25, "", FIELDS), [(one, 1.5), (one, 1.5), (other, 1.5)])]


async def test_a_batch_that_was_lost_is_told_with_what_it_failed_with() -> None:
    clock, tracer, one = FakeClock(), RecordingTracer(), RecordedTrace()

    async def run(encodings: Sequence[Encoding]) -> BatchResult:
        clock.now += 2
        raise ReplicaLost("gone")

    with pytest.raises(ReplicaLost):
        await traced(tracer, clock, run, jobs(clock, one), 5)
    [(told, _)] = tracer.batches
    assert told == BatchTrace(2.0, 0.0, "ReplicaLost", FIELDS)


async def test_a_request_waits_under_its_own_trace() -> None:
    tracer, mine = RecordingTracer(), RecordedTrace()
    batcher = Batcher(
        latency_models=LatencyModels(metrics=make_metrics()), max_queue_tokens=99, metrics=make_metrics(), tracer=tracer
    )

    async def run(encodings: Sequence[Encoding]) -> BatchResult:
        batcher.close()
        return BatchResult([total(encoding) for encoding in encodings], 0.25)

    trace.replica.set("cpu#2")
    token = trace.current.set(mine)
    waiting = asyncio.create_task(batcher.submit([row(1, 2)]))
    trace.current.reset(token)
    await batcher.feed(run)
    await waiting
    [(told, requests)] = tracer.batches
    assert told.fields == {"model": "m", "rows": 1, "tokens": 2, "replica": "cpu#2"}
    assert [one for one, _ in requests] == [mine]
