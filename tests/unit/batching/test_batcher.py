"""The batcher between requests and replicas. Events, not time, decide when a batch finishes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.batching.admission import UNMEASURED_RETRY_S
from service.batching.batch import Batch, BatchNotStarted, BatchResult
from service.batching.batcher import Batcher
from service.batching.jobs import RequestResult
from service.batching.latency_model import LatencyModels
from service.batching.result_cache import ResultCache
from service.domain import Encoding, RequestOptions, Step, keep
from service.errors import DeadlineExceeded, DeadlineUnreachable, InferenceFailed, QueueFull, ReplicaLost, Unavailable
from service.metrics import Metrics
from tests.fakes import FakeClock, make_metrics, row, rows, total, value

pytestmark = pytest.mark.anyio


class Runner:
    """A replica that computes sums when `gate` is set. Batch i raises `fates[i]` unless that is None."""

    def __init__(self, *fates: Exception | None, name: str = "cpu") -> None:
        self.name = name
        self.fates = list(fates)
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.arrived = asyncio.Semaphore(0)

    async def run(self, batch: Batch) -> BatchResult:
        self.batches.append([int(encoding.ids[0]) for encoding in batch.encodings])
        self.arrived.release()
        await self.gate.wait()
        fate = self.fates.pop(0) if self.fates else None
        if fate is not None:
            raise fate
        return BatchResult([total(encoding) if encoding.ids[0] >= 0 else "failed" for encoding in batch.encodings], 0.5)


def make(
    metrics: Metrics | None = None,
    clock: FakeClock | None = None,
    max_batch_tokens: int = 100,
    max_queue_tokens: int = 1000,
    **options: Any,
) -> Batcher:
    metrics = metrics or make_metrics()
    latency_models = LatencyModels(metrics=metrics, max_batch_tokens=max_batch_tokens)
    return Batcher(
        latency_models=latency_models,
        max_queue_tokens=max_queue_tokens,
        metrics=metrics,
        clock=clock or time.monotonic,
        **options,
    )


@asynccontextmanager
async def fed(batcher: Batcher, *runners: Runner) -> AsyncIterator[None]:
    feeders = [asyncio.create_task(batcher.feed(runner)) for runner in runners]
    yield
    batcher.close()
    await asyncio.gather(*feeders)


def submit(batcher: Batcher, *ids: int, **options: Any) -> asyncio.Task[RequestResult]:
    """Submits a request of one-token rows; it is queued after one turn of the event loop."""
    return asyncio.create_task(batcher.submit([row(each) for each in ids], RequestOptions(**options)))


async def turn() -> None:
    """Lets every task that is ready run once."""
    await asyncio.sleep(0)


def sums(settled: RequestResult) -> list[float]:
    return [float(output.scores[0, 0]) for output in settled.outputs]


async def test_requests_that_wait_during_a_batch_form_the_next_batch() -> None:
    metrics, runner = make_metrics(), Runner()
    batcher = make(metrics)
    async with fed(batcher, runner):
        requests = [submit(batcher, 1)]
        await runner.arrived.acquire()
        requests += [submit(batcher, each) for each in (2, 3, 4, 5)]
        await turn()
        assert value(metrics, "queue_jobs") == 4
        assert value(metrics, "batches_in_flight") == 1
        runner.gate.set()
        answers = await asyncio.gather(*requests)
    assert runner.batches == [[1], [2, 3, 4, 5]]
    assert [sums(answer) for answer in answers] == [[1], [2], [3], [4], [5]]
    assert value(metrics, "queue_jobs") == value(metrics, "queue_tokens") == 0
    assert value(metrics, "batches_in_flight") == value(metrics, "tokens_in_flight") == 0
    assert value(metrics, "batches_total", model="m") == 2
    assert value(metrics, "batch_rows_sum", model="m") == 5


async def test_two_feeders_have_two_batches_in_flight() -> None:
    runner = Runner()
    batcher = make()
    async with fed(batcher, runner, runner):
        requests = [submit(batcher, 1)]
        await runner.arrived.acquire()
        requests.append(submit(batcher, 2))
        await runner.arrived.acquire()
        requests += [submit(batcher, 3), submit(batcher, 4)]
        await turn()
        runner.gate.set()
        await asyncio.gather(*requests)
    assert runner.batches == [[1], [2], [3, 4]]


async def test_a_request_of_several_batches_is_answered_once_in_row_order() -> None:
    clock, runner = FakeClock(), Runner()
    runner.gate.set()
    batcher = make(clock=clock, max_batch_tokens=2)
    async with fed(batcher, runner):
        answer = await batcher.submit([row(each) for each in (5, 4, 3, 2, 1)])
    assert runner.batches == [[5, 4], [3, 2], [1]]
    assert sums(answer) == [5, 4, 3, 2, 1]


async def test_a_request_without_rows_is_answered_immediately() -> None:
    assert await make().submit([]) == RequestResult([], 0.0, 0.0)


async def test_a_result_reports_queue_and_compute_seconds() -> None:
    clock, runner = FakeClock(), Runner()
    batcher = make(clock=clock)
    async with fed(batcher, runner):
        request = submit(batcher, 1)
        await runner.arrived.acquire()
        clock.now += 2.0
        runner.gate.set()
        answer = await request
    assert (answer.queue_s, answer.compute_s) == (1.5, 0.5)


async def test_seconds_of_overlapping_batches_are_counted_once() -> None:
    clock, runner = FakeClock(), Runner()
    batcher = make(clock=clock, max_batch_tokens=1)
    async with fed(batcher, runner, runner):
        request = submit(batcher, 1, 2)
        await runner.arrived.acquire()
        await runner.arrived.acquire()
        clock.now += 0.75
        runner.gate.set()
        answer = await request
    assert (answer.queue_s, answer.compute_s) == (0.25, 0.5)


async def test_an_exception_fails_its_batch_and_the_next_batch_runs(caplog: pytest.LogCaptureFixture) -> None:
    runner = Runner(RuntimeError("broken"))
    batcher = make(max_batch_tokens=2)
    async with fed(batcher, runner):
        requests = [submit(batcher, each) for each in (1, 2, 3)]
        runner.gate.set()
        first, second, third = await asyncio.gather(*requests, return_exceptions=True)
    assert isinstance(first, InferenceFailed)
    assert isinstance(second, InferenceFailed)
    assert first is not second
    assert isinstance(third, RequestResult)
    assert "batch failed" in caplog.text


async def test_a_wrong_number_of_outputs_is_an_error() -> None:
    class Empty(Runner):
        async def run(self, batch: Batch) -> BatchResult:
            return BatchResult([], 0.0)

    batcher = make()
    feeder = asyncio.create_task(batcher.feed(Empty()))
    with pytest.raises(InferenceFailed):
        await batcher.submit([row(1)])
    batcher.close()
    await feeder


async def test_a_failed_row_fails_only_its_own_request() -> None:
    metrics, runner = make_metrics(), Runner()
    batcher = make(metrics, max_batch_tokens=3)
    async with fed(batcher, runner):
        bad, good = submit(batcher, -1, 7), submit(batcher, 8)
        late = submit(batcher, -2, *range(11, 19))
        runner.gate.set()
        with pytest.raises(InferenceFailed) as failed:
            await bad
        assert failed.value.row == 0
        assert sums(await good) == [8]
        with pytest.raises(InferenceFailed):
            await late
    assert runner.batches == [[-1, 8, -2]], "the remaining rows of a failed request are not computed"
    assert value(metrics, "failed_rows_total", model="m") == 2
    assert value(metrics, "jobs_dropped_total", reason="abandoned") == 9


async def test_a_lost_batch_is_given_back_in_order() -> None:
    metrics, lost, runner = make_metrics(), Runner(ReplicaLost("gone")), Runner()
    runner.gate.set()
    batcher = make(metrics, max_batch_tokens=2)
    feeder = asyncio.create_task(batcher.feed(lost))
    requests = [submit(batcher, each) for each in (1, 2, 3, 4)]
    await lost.arrived.acquire()
    lost.gate.set()
    await feeder
    assert value(metrics, "jobs_given_back_total") == 2
    async with fed(batcher, runner):
        answers = await asyncio.gather(*requests)
    assert lost.batches == [[1, 2]]
    assert runner.batches == [[1], [2], [3, 4]], "the two suspect rows are computed one per batch"
    assert [sums(answer) for answer in answers] == [[1], [2], [3], [4]]


async def test_a_crashing_row_fails_alone_and_the_other_rows_are_answered() -> None:
    metrics, lost, runner = make_metrics(), Runner(ReplicaLost("gone"), None, ReplicaLost("gone")), Runner()
    lost.gate.set()
    runner.gate.set()
    batcher = make(metrics)
    requests = [submit(batcher, each) for each in (1, 2, 3)]
    await turn()
    await batcher.feed(lost)
    await batcher.feed(lost)
    async with fed(batcher, runner):
        first, second, third = await asyncio.gather(*requests, return_exceptions=True)
    assert lost.batches == [[1, 2, 3], [1], [2]]
    assert isinstance(first, RequestResult)
    assert isinstance(second, ReplicaLost)
    assert isinstance(third, RequestResult)
    assert value(metrics, "jobs_given_back_total") == 3


async def test_a_batch_that_was_not_started_is_not_suspect() -> None:
    lost, runner = Runner(*[BatchNotStarted("gone")] * 3), Runner()
    lost.gate.set()
    runner.gate.set()
    batcher = make()
    requests = [submit(batcher, each) for each in (1, 2)]
    await turn()
    for _ in range(3):
        await batcher.feed(lost)
    async with fed(batcher, runner):
        await asyncio.gather(*requests)
    assert lost.batches + runner.batches == [[1, 2]] * 4


async def test_a_job_that_is_lost_twice_fails_with_replica_lost() -> None:
    lost, runner = Runner(ReplicaLost("gone"), ReplicaLost("gone")), Runner()
    lost.gate.set()
    runner.gate.set()
    batcher = make(max_batch_tokens=1)
    first, second = submit(batcher, 1), submit(batcher, 2)
    await turn()
    await batcher.feed(lost)
    await batcher.feed(lost)
    with pytest.raises(ReplicaLost) as lost:
        await first
    assert (lost.value.status, lost.value.retryable) == (503, True)
    async with fed(batcher, runner):
        assert sums(await second) == [2]


async def test_a_cancelled_feeder_gives_its_batch_back() -> None:
    lost, runner = Runner(), Runner()
    runner.gate.set()
    batcher = make()
    feeder = asyncio.create_task(batcher.feed(lost))
    request = submit(batcher, 1)
    await lost.arrived.acquire()
    feeder.cancel()
    async with fed(batcher, runner):
        assert sums(await request) == [1]


async def test_rows_of_a_cancelled_request_are_not_computed() -> None:
    metrics, runner = make_metrics(), Runner()
    batcher = make(metrics)
    async with fed(batcher, runner):
        first = submit(batcher, 1)
        await runner.arrived.acquire()
        gone, stays = submit(batcher, 2, 3), submit(batcher, 4)
        await turn()
        gone.cancel()
        await turn()
        assert value(metrics, "queue_tokens") == 1
        runner.gate.set()
        await asyncio.gather(first, stays)
    assert runner.batches == [[1], [4]]
    assert value(metrics, "jobs_dropped_total", reason="cancelled") == 2
    assert gone.cancelled()


async def test_a_request_cancelled_while_computing_leaves_others_unaffected() -> None:
    runner = Runner()
    batcher = make()
    async with fed(batcher, runner):
        gone, stays = submit(batcher, 1), submit(batcher, 2)
        await runner.arrived.acquire()
        gone.cancel()
        runner.gate.set()
        assert sums(await stays) == [2]


async def test_a_job_past_its_deadline_is_not_computed() -> None:
    clock, metrics, runner = FakeClock(), make_metrics(), Runner()
    batcher = make(metrics, clock)
    async with fed(batcher, runner):
        first = submit(batcher, 1)
        await runner.arrived.acquire()
        late, later = submit(batcher, 2, deadline=clock.now + 1000), submit(batcher, 3, deadline=clock.now + 2000)
        await turn()
        clock.now += 1000
        runner.gate.set()
        await asyncio.gather(first, later)
        with pytest.raises(DeadlineExceeded):
            await late
    assert runner.batches == [[1], [3]]
    assert value(metrics, "jobs_dropped_total", reason="expired") == 1


async def test_a_deadline_is_raised_while_waiting_and_while_computing() -> None:
    metrics, runner = make_metrics(), Runner()
    batcher = make(metrics)
    async with fed(batcher, runner):
        computing = submit(batcher, 1, deadline=time.monotonic() + 0.01)
        await runner.arrived.acquire()
        waiting = submit(batcher, 2, deadline=time.monotonic() + 0.01)
        for request in (computing, waiting):
            with pytest.raises(DeadlineExceeded):
                await request
        assert value(metrics, "queue_jobs") == 0
        runner.gate.set()
    assert runner.batches == [[1]]
    assert value(metrics, "jobs_dropped_total", reason="expired") == 1


async def test_a_request_submitted_past_its_deadline_is_not_computed() -> None:
    runner = Runner()
    runner.gate.set()
    batcher = make()
    with pytest.raises(DeadlineExceeded):
        await batcher.submit([row(1)], RequestOptions(time.monotonic() - 1))
    async with fed(batcher, runner):
        await batcher.submit([row(2)])
    assert runner.batches == [[2]]


async def test_a_full_queue_refuses_with_its_predicted_wait_as_retry_after() -> None:
    clock, metrics, runner, other = FakeClock(), make_metrics(("m", "n")), Runner(), Runner(name="cpu#2")
    batcher = make(metrics, clock, max_batch_tokens=10, max_queue_tokens=40)
    first, second, *others = rows(*[10] * 6)
    async with fed(batcher, other, runner):
        other_model = asyncio.create_task(batcher.submit([row(1, model="n")]))
        await other.arrived.acquire()  # it computes until the end of the test, for a model without a latency model
        computing = asyncio.create_task(batcher.submit([first]))
        await runner.arrived.acquire()
        runner.gate.set()  # 10 tokens take 0.5 s
        await computing
        runner.gate.clear()
        computing = asyncio.create_task(batcher.submit([second]))
        await runner.arrived.acquire()
        waiting = asyncio.create_task(batcher.submit(others[:3]))
        await turn()
        clock.now += 0.25
        expected = pytest.approx(0.875)
        assert value(metrics, "queue_predicted_wait_seconds") == expected, "30 tokens and half a batch on two replicas"
        with pytest.raises(QueueFull) as refusal:
            await batcher.submit(rows(5, 6))
        assert refusal.value.retry_after_s == expected
        assert value(metrics, "jobs_refused_total", reason="queue_full") == 2
        fits = asyncio.create_task(batcher.submit(others[3:]))
        await turn()
        runner.gate.set()
        await asyncio.gather(computing, waiting, fits)
        other.gate.set()
        await other_model
    assert value(metrics, "queue_predicted_wait_seconds") == 0.0


async def test_an_unreachable_deadline_is_refused_and_not_queued() -> None:
    clock, metrics, runner = FakeClock(), make_metrics(), Runner()
    batcher = make(metrics, clock, max_batch_tokens=1)
    async with fed(batcher, runner):
        runner.gate.set()
        await submit(batcher, 1)  # one token takes 0.5 s
        runner.gate.clear()
        computing = submit(batcher, 2)
        await runner.arrived.acquire()
        await runner.arrived.acquire()
        admitted = submit(batcher, 3, deadline=clock.now + 2.0)
        await turn()
        with pytest.raises(DeadlineUnreachable) as refusal:
            await submit(batcher, 4, deadline=clock.now + 2.0)
        assert (refusal.value.status, refusal.value.retryable) == (429, True)
        assert refusal.value.retry_after_s == pytest.approx(1.0, abs=0.1)
        assert value(metrics, "queue_jobs") == 1
        with pytest.raises(DeadlineUnreachable):
            batcher.admit(RequestOptions(deadline=clock.now + 2.0))
        batcher.admit(RequestOptions(deadline=clock.now + 2.0, priority=1))
        runner.gate.set()
        await asyncio.gather(computing, admitted)
    assert value(metrics, "jobs_refused_total", reason="deadline") == 2


async def test_an_account_with_a_thousand_rows_does_not_starve_another() -> None:
    runner = Runner()
    batcher = make(max_batch_tokens=10, max_queue_tokens=1000)
    async with fed(batcher, runner, runner):
        bulk = [submit(batcher, *range(start, start + 10), account="bulk") for start in range(1000, 2000, 10)]
        for _ in range(2):
            await runner.arrived.acquire()
        live = [submit(batcher, each, account="live") for each in range(5)]
        await turn()
        runner.gate.set()
        await asyncio.gather(*live, *bulk)
    assert runner.batches[2] == [0, 1200, 1, 1210, 2, 1220, 3, 1230, 4, 1240], "the first batch after two of bulk"


async def test_a_full_queue_without_a_latency_model_sends_the_default_retry_after() -> None:
    batcher = make(max_queue_tokens=10)
    waiting = asyncio.create_task(batcher.submit(rows(10)))
    await turn()
    with pytest.raises(QueueFull) as refusal:
        await batcher.submit(rows(1))
    assert refusal.value.retry_after_s == UNMEASURED_RETRY_S
    waiting.cancel()


async def test_an_empty_queue_admits_a_request_above_the_token_limit() -> None:
    runner = Runner()
    runner.gate.set()
    batcher = make(max_queue_tokens=10)
    async with fed(batcher, runner):
        assert len((await batcher.submit(rows(20, 20))).outputs) == 2


async def test_close_fails_waiting_and_later_requests() -> None:
    metrics = make_metrics()
    batcher, lost = make(metrics, max_batch_tokens=1), Runner(ReplicaLost("gone"))
    feeder = asyncio.create_task(batcher.feed(lost))
    requests = [submit(batcher, 1), submit(batcher, 2)]
    await lost.arrived.acquire()
    batcher.close()
    lost.gate.set()
    await feeder
    for request in [*requests, submit(batcher, 3)]:
        with pytest.raises(Unavailable):
            await request
    with pytest.raises(Unavailable):
        batcher.admit(RequestOptions())
    assert value(metrics, "jobs_refused_total", reason="draining") == 2


async def test_the_metric_of_the_oldest_age_grows_with_time() -> None:
    clock, metrics = FakeClock(), make_metrics()
    batcher = make(metrics, clock)
    request = submit(batcher, 1)
    await turn()
    clock.now += 3.0
    assert value(metrics, "queue_oldest_age_seconds") == 3.0
    request.cancel()
    await turn()
    assert value(metrics, "queue_oldest_age_seconds") == 0.0


async def test_equal_rows_of_concurrent_requests_are_computed_once() -> None:
    metrics, runner = make_metrics(), Runner()
    batcher = make(metrics, max_batch_tokens=2)
    async with fed(batcher, runner):
        first = submit(batcher, 1, 2, 1)
        await runner.arrived.acquire()
        late, other = submit(batcher, 2, 3), submit(batcher, 3)
        await turn()
        runner.gate.set()
        answers = await asyncio.gather(first, late, other)
    assert runner.batches == [[1, 2], [3]], "a row that is computing or waiting is not queued again"
    assert [sums(answer) for answer in answers] == [[1, 2, 1], [2, 3], [3]]
    assert value(metrics, "shared_rows_total", model="m") == 3
    assert value(metrics, "queue_jobs") == 0


async def test_a_finished_row_is_computed_again_without_a_cache() -> None:
    runner = Runner(RuntimeError("broken"))
    runner.gate.set()
    batcher = make()
    async with fed(batcher, runner):
        with pytest.raises(InferenceFailed):
            await submit(batcher, 1)
        for _ in range(2):
            assert sums(await submit(batcher, 1)) == [1]
    assert runner.batches == [[1]] * 3


@pytest.mark.parametrize("is_computing", [False, True], ids=["waiting", "computing"])
async def test_a_follower_is_answered_when_its_leader_is_cancelled(is_computing: bool) -> None:
    metrics, runner = make_metrics(), Runner()
    batcher = make(metrics)
    async with fed(batcher, runner):
        first = submit(batcher, 1 if is_computing else 7)
        await runner.arrived.acquire()
        leader = first if is_computing else submit(batcher, 1, 2)
        await turn()
        follower = submit(batcher, 1)
        await turn()
        leader.cancel()
        await turn()
        assert value(metrics, "queue_jobs") == (0 if is_computing else 1), "the leader's other row is dropped"
        runner.gate.set()
        assert sums(await follower) == [1]
    assert runner.batches == ([[1]] if is_computing else [[7], [1]])


async def test_a_follower_is_answered_after_the_deadline_of_its_leader() -> None:
    clock, runner = FakeClock(), Runner()
    batcher = make(clock=clock)
    async with fed(batcher, runner):
        first = submit(batcher, 7)
        await runner.arrived.acquire()
        leader, follower = submit(batcher, 1, deadline=clock.now + 1000), submit(batcher, 1, deadline=clock.now + 3000)
        last = submit(batcher, 2, deadline=clock.now + 1000)
        await turn()
        clock.now += 2000
        runner.gate.set()
        assert sums(await follower) == [1]
        with pytest.raises(DeadlineExceeded):
            await last
        await asyncio.gather(first, leader, return_exceptions=True)
    assert runner.batches == [[7], [1]]


async def test_followers_of_a_lost_batch_are_answered() -> None:
    lost, runner = Runner(ReplicaLost("gone")), Runner()
    batcher = make()
    feeder = asyncio.create_task(batcher.feed(lost))
    leader = submit(batcher, 1)
    await lost.arrived.acquire()
    follower, gone = submit(batcher, 1), submit(batcher, 1)
    await turn()
    gone.cancel()
    leader.cancel()
    lost.gate.set()
    await feeder
    late = submit(batcher, 1, 2)
    runner.gate.set()
    async with fed(batcher, runner):
        assert [sums(answer) for answer in await asyncio.gather(follower, late)] == [[1], [1, 2]]
    assert runner.batches == [[1], [2]]


async def test_a_lost_batch_of_cancelled_requests_is_dropped() -> None:
    lost, runner = Runner(ReplicaLost("gone")), Runner()
    batcher = make()
    feeder = asyncio.create_task(batcher.feed(lost))
    gone = submit(batcher, 1)
    await lost.arrived.acquire()
    gone.cancel()
    await turn()
    lost.gate.set()
    await feeder
    runner.gate.set()
    async with fed(batcher, runner):
        assert sums(await submit(batcher, 1)) == [1], "a later equal request does not wait for the dropped job"


async def test_a_follower_with_higher_priority_moves_the_job_forward() -> None:
    runner = Runner()
    batcher = make(max_batch_tokens=1)
    async with fed(batcher, runner):
        requests = [submit(batcher, 9)]
        await runner.arrived.acquire()
        requests += [submit(batcher, 1, 2, 3), submit(batcher, 4), submit(batcher, 3, priority=1)]
        await turn()
        runner.gate.set()
        await asyncio.gather(*requests)
    assert runner.batches == [[9], [3], [1], [4], [2]]


async def test_a_cached_output_is_not_computed() -> None:
    clock, metrics, runner = FakeClock(), make_metrics(), Runner()
    runner.gate.set()
    cache = ResultCache(max_entries=10, max_bytes=10**6, ttl_s=60, metrics=metrics, revisions={"m": "1"}, clock=clock)
    batcher = make(metrics, clock, cache=cache)
    async with fed(batcher, runner):
        await submit(batcher, 1, 2)
        again = await submit(batcher, 2, 1)
        mixed = await submit(batcher, 3, 1)
        clock.now += 60.0
        await submit(batcher, 1)
    assert (sums(again), again.queue_s, again.compute_s) == ([2, 1], 0.0, 0.0)
    assert sums(mixed) == [3, 1]
    assert runner.batches == [[1, 2], [3], [1]]
    assert value(metrics, "cache_hits_total", model="m") == 3
    assert value(metrics, "cache_misses_total", model="m") == 4
    assert value(metrics, "cache_evicted_total", reason="expired") == 1


async def test_distrusted_results_are_computed_again() -> None:
    metrics, runner = make_metrics(), Runner()
    runner.gate.set()
    cache = ResultCache(max_entries=10, max_bytes=10**6, ttl_s=60, metrics=metrics, revisions={"m": "1"})
    batcher = make(metrics, cache=cache)
    async with fed(batcher, runner):
        await submit(batcher, 1, 2)
        batcher.distrust_results()
        await submit(batcher, 1)
    assert runner.batches == [[1, 2], [1]]
    assert value(metrics, "cache_evicted_total", reason="distrusted") == 2


def mixed(*ids: int, label: int = 9) -> list[Encoding]:
    """Rows of the model `m`, one of the model `n`, and one of `n` whose output is kept."""
    return [*[row(each) for each in ids], row(5, model="n"), keep(row(label, model="n"))]


async def test_rows_of_two_models_are_answered_once_in_row_order() -> None:
    metrics, runner = make_metrics(("m", "n")), Runner()
    runner.gate.set()
    batcher = make(metrics)
    async with fed(batcher, runner):
        answer = await batcher.submit(mixed(1, 2))
    assert runner.batches == [[1, 2], [5, 9]]
    assert sums(answer) == [1, 2, 5, 9]
    assert (answer.compute_s, value(metrics, "queue_tokens")) == (pytest.approx(0, abs=0.1), 0)


async def test_a_failed_row_fails_the_request_and_drops_its_rows_of_the_other_model() -> None:
    metrics, runner = make_metrics(("m", "n")), Runner()
    batcher = make(metrics)
    async with fed(batcher, runner):
        request = asyncio.create_task(batcher.submit(mixed(-1)))
        await turn()
        runner.gate.set()
        with pytest.raises(InferenceFailed):
            await request
    assert runner.batches == [[-1]]
    assert value(metrics, "jobs_dropped_total", reason="abandoned") == 2


async def test_a_deadline_drops_the_rows_of_both_models() -> None:
    clock, metrics, runner = FakeClock(), make_metrics(("m", "n")), Runner()
    batcher = make(metrics, clock)
    async with fed(batcher, runner):
        first = submit(batcher, 7)
        await runner.arrived.acquire()
        late = asyncio.create_task(batcher.submit(mixed(1), RequestOptions(clock.now + 1000)))
        await turn()
        clock.now += 1000
        runner.gate.set()
        await first
        with pytest.raises(DeadlineExceeded):
            await late
    assert runner.batches == [[7]]
    assert value(metrics, "jobs_dropped_total", reason="expired") == 3


async def test_admission_predicts_the_time_of_both_models() -> None:
    clock, metrics, runner = FakeClock(), make_metrics(("m", "n")), Runner()
    batcher = make(metrics, clock)
    batcher._latency_models.calibrate("cpu", "m", [Step(1, 1, 1.0)])
    batcher._latency_models.calibrate("cpu", "n", [Step(1, 1, 10.0)])
    async with fed(batcher, runner):
        first = submit(batcher, 7)
        await runner.arrived.acquire()
        with pytest.raises(DeadlineUnreachable):
            await batcher.submit(mixed(1), RequestOptions(clock.now + 20))
        runner.gate.set()
        await first


async def test_kept_outputs_are_computed_once() -> None:
    metrics, runner = make_metrics(("m", "n")), Runner()
    batcher = make(metrics)
    async with fed(batcher, runner):
        together = [asyncio.create_task(batcher.submit(mixed(each))) for each in (1, 2)]
        await runner.arrived.acquire()
        runner.gate.set()
        await asyncio.gather(*together)
        again = await batcher.submit(mixed(3))
    assert sums(again) == [3, 5, 9]
    assert runner.batches == [[1, 2], [5, 9], [3], [5]]
    assert batcher.is_kept(mixed(1)[-1])
    assert not batcher.is_kept(mixed(1, label=8)[-1])
    assert value(metrics, "shared_rows_total", model="n") == 2
    assert value(metrics, "shared_rows_total", model="m") == 0
    assert value(metrics, "label_cache_hits_total", model="n") == 1
    assert value(metrics, "label_cache_misses_total", model="n") == 2
    assert value(metrics, "label_cache_entries") == 1


async def test_a_kept_row_that_joins_an_equal_one_in_flight_is_kept() -> None:
    runner = Runner()
    batcher = make()
    async with fed(batcher, runner):
        first = submit(batcher, 1)
        await runner.arrived.acquire()
        second = asyncio.create_task(batcher.submit([keep(row(1))]))
        await turn()
        runner.gate.set()
        await asyncio.gather(first, second)
        assert sums(await batcher.submit([keep(row(1))])) == [1]
    assert runner.batches == [[1]]


async def test_kept_outputs_that_are_distrusted_or_failed_are_computed_again() -> None:
    metrics, runner = make_metrics(), Runner()
    runner.gate.set()
    batcher = make(metrics)
    async with fed(batcher, runner):
        await batcher.submit([keep(row(1))])
        batcher.distrust_results()
        await batcher.submit([keep(row(1))])
        for _ in range(2):
            with pytest.raises(InferenceFailed):
                await batcher.submit([keep(row(-1))])
    assert runner.batches == [[1], [1], [-1], [-1]]
    assert value(metrics, "label_cache_evicted_total", reason="distrusted") == 1


async def test_the_result_cache_leaves_kept_rows_to_the_label_cache() -> None:
    metrics, runner = make_metrics(("m", "n")), Runner()
    runner.gate.set()
    cache = ResultCache(max_entries=10, max_bytes=10**6, ttl_s=60, metrics=metrics, revisions={})
    batcher = make(metrics, cache=cache)
    async with fed(batcher, runner):
        await batcher.submit(mixed(1))
        assert sums(await batcher.submit(mixed(1))) == [1, 5, 9]
    assert runner.batches == [[1], [5, 9]]
    assert value(metrics, "cache_entries") == 2
    assert value(metrics, "label_cache_entries") == 1
