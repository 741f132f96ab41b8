"""The batcher: requests put jobs into one queue, feeders take batches out of it the moment they have room.

Knows no process, no engine and no HTTP. There is no timer: while a batch is computed the next one grows. A batch is
wholly answered, but for rows that fail alone, or given back once, or failed. Rows that are equal are computed once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from service.batching.admission import Admission, InFlightBatches
from service.batching.batch import BatchNotStarted, BatchResult, Run
from service.batching.jobs import InFlightRows, Job, PendingRequest, RequestResult
from service.batching.latency_model import LatencyModels
from service.batching.queue import Queue
from service.batching.result_cache import Cache, NoCache
from service.domain import DEFAULT_OPTIONS, Encoding, Failure, Output, RequestOptions
from service.errors import DeadlineExceeded, InferenceFailed, OutOfMemory, ReplicaLost, ServiceError, Unavailable
from service.metric_labels import DropReason
from service.metrics import Metrics
from service.tracing.trace import NO_TRACER, BatchTrace, Trace, Tracer, current, replica


async def traced(
    tracer: Tracer, clock: Callable[[], float], run: Run, batch: Sequence[Job], tokens: int
) -> BatchResult:
    """Raises what `run` raises."""
    taken, compute_s, error = clock(), 0.0, ""
    try:
        ran = await run([job.encoding for job in batch])
        compute_s = ran.compute_s
        return ran
    except BaseException as raised:
        error = type(raised).__name__
        raise
    finally:
        now = clock()
        fields = {
            "model": batch[0].encoding.model,
            "rows": len(batch),
            "tokens": tokens,
            "replica": replica.get(),
        }
        tracer.batch(BatchTrace(now - taken, compute_s, error, fields), _waiting(batch, now))


def _waiting(batch: Sequence[Job], now: float) -> Iterator[tuple[Trace, float]]:
    return ((pending.trace, now - pending.arrived) for job in batch for pending, _ in job.waiters)


logger = logging.getLogger(__name__)

Result = RequestResult | ServiceError


class Batcher:
    """One queue, any number of feeders. Lives on one event loop.

    `pace` bounds a batch (a longer row goes alone), `max_queue_tokens` and `max_wait_s` what may wait, and every fourth
    batch is for who has waited `max_age_s`. `num_replicas` tells how many compute at the moment.
    """

    def __init__(
        self,
        *,
        latency_models: LatencyModels,
        max_queue_tokens: int,
        metrics: Metrics,
        tracer: Tracer = NO_TRACER,
        max_wait_s: float = 30.0,
        max_age_s: float = 2.0,
        cache: Cache | None = None,
        num_replicas: Callable[[], int] = lambda: 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._latency_models = latency_models
        self._metrics = metrics
        self._tracer = tracer
        self._cache = NoCache() if cache is None else cache
        self._clock = clock
        self._queue = Queue(max_age_s=max_age_s, budget=latency_models.budget, dropped=self._on_dropped)
        self._flights = InFlightRows()
        self._in_flight = InFlightBatches()
        self._admission = Admission(
            self._queue,
            latency_models,
            self._in_flight,
            max_queue_tokens=max_queue_tokens,
            max_wait_s=max_wait_s,
            num_replicas=num_replicas,
            metrics=metrics,
        )
        self._is_closed = False
        self._filled = asyncio.Event()
        metrics.watch_queue(
            lambda: len(self._queue),
            lambda: self._queue.num_tokens,
            self._oldest_age_s,
            lambda: self._admission.wait_s(clock()) or 0.0,
        )

    def admit(self, options: RequestOptions) -> None:
        """Raises what `submit` would, for a request of which nothing else is known yet: to read it would be in vain."""
        if self._is_closed:
            self._metrics.refused("draining", 1)
            raise Unavailable("the service is stopping")
        self._admission.check(options, (), self._clock())

    async def submit(self, encodings: Sequence[Encoding], options: RequestOptions = DEFAULT_OPTIONS) -> RequestResult:
        """Waits until all rows are computed.

        Raises QueueFull, DeadlineUnreachable, Unavailable, DeadlineExceeded, ReplicaLost, InferenceFailed. When the
        caller is cancelled or the deadline passes, its jobs that still wait, and that nobody else waits for, are never
        computed.
        """
        if not encodings:
            return RequestResult([], 0.0, 0.0)
        now = self._clock()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[RequestResult] = loop.create_future()
        pending = PendingRequest(encodings, now, partial(_resolve, answer), options, current.get())
        jobs = self._enter(pending)
        # asyncio.timeout would do, and take several times as long.
        late = None if options.deadline is None else loop.call_later(options.deadline - now, _expire, pending)
        try:
            return await answer
        finally:
            if late is not None:
                late.cancel()
            closed = pending.close("cancelled")
            if closed != "answered":
                self._queue.remove([job for job in jobs if job.is_deserted], closed)

    async def feed(self, run: Run) -> None:
        """Takes and computes batches, one at a time, until `run` is lost or there will be no more jobs."""
        while batch := await self._take():
            taken = self._in_flight.take(run, self._expected_s(batch), self._clock())
            try:
                if not await self._compute(run, batch):
                    return
            finally:
                self._in_flight.land(taken, self._clock())

    def close(self) -> None:
        """Ends the feeders, fails whoever still waits, and lets no job in any more."""
        self._is_closed = True
        self._fail(self._queue.drain(), lambda row: Unavailable("the service is stopping"))
        self._filled.set()

    def _enter(self, pending: PendingRequest) -> list[Job]:
        """Answers what was kept, and puts a job for every other row into the queue, unless one is in flight already."""
        if self._is_closed:
            self._metrics.refused("draining", len(pending.encodings))
            raise Unavailable("the service is stopping")
        kept = [self._cache.get(encoding) for encoding in pending.encodings]
        rows = [row for row, output in enumerate(kept) if output is None]
        if rows:
            self._admission.check(pending.options, [pending.encodings[row] for row in rows], pending.arrived)
        for row, output in enumerate(kept):
            if output is not None:
                pending.settle(row, output, 0.0, pending.arrived)
        jobs = self._flights.board(pending, rows)
        num_shared = len(rows) - sum(job.is_new for job in jobs)
        if num_shared:
            self._metrics.shared_rows.labels(pending.encodings[0].model).inc(num_shared)
        self._queue.push(jobs, pending.options)
        self._filled.set()
        return jobs

    def _expected_s(self, batch: Sequence[Job]) -> float:
        tokens = sum(job.num_tokens for job in batch)
        return self._latency_models.predict(batch[0].encoding.model, tokens, len(batch)) or 0.0

    async def _take(self) -> list[Job]:
        """The next batch, as soon as there is one; empty when there will be none."""
        while True:
            batch = self._queue.take(self._clock())
            if batch or self._is_closed:
                return batch
            self._filled.clear()
            await self._filled.wait()

    async def _compute(self, run: Run, batch: list[Job]) -> bool:
        """Settles the batch; False when `run` is lost."""
        taken, tokens = self._clock(), sum(job.num_tokens for job in batch)
        self._metrics.taken((taken - job.arrived for job in batch), tokens)
        try:
            self._settle(batch, await traced(self._tracer, self._clock, run, batch, tokens), tokens)
        except BatchNotStarted:
            self._give_back(batch)
            return False
        except ReplicaLost:
            self._blame(batch)
            return False
        except asyncio.CancelledError:
            self._give_back(batch)
            raise
        except Exception:  # the loop's edge: one bad batch must not end the feeder
            logger.exception("batch failed", extra={"rows": len(batch), "tokens": tokens})
            self._fail(batch, lambda row: InferenceFailed("the batch of this request could not be computed"))
        finally:
            self._metrics.landed(tokens)
        return True

    def _settle(self, batch: list[Job], ran: BatchResult, tokens: int) -> None:
        if len(ran.outputs) != len(batch):
            raise ValueError(f"{len(ran.outputs)} outputs for a batch of {len(batch)}")
        now, model = self._clock(), batch[0].encoding.model
        num_failed = sum(not isinstance(output, Output) for output in ran.outputs)
        self._metrics.computed(model, rows=len(batch), failed_rows=num_failed, tokens=tokens, seconds=ran.compute_s)
        if ran.fitting_tokens is not None:
            self._metrics.out_of_memory.labels(model).inc()
            self._latency_models.ran_out(model, ran.fitting_tokens)
        elif not num_failed:  # the search for a bad row takes longer than a batch does
            self._latency_models.note(model, tokens, len(batch), ran.compute_s)
        self._flights.land(batch)
        for job, output in zip(batch, ran.outputs, strict=True):
            if isinstance(output, Output):
                self._cache.put(job.encoding, output)
                job.settle(output, ran.compute_s, now)
            else:
                job.fail(_FAILURES[output])

    def _blame(self, batch: list[Job]) -> None:
        """A job's first loss sends it back to the head of the queue, its second is its callers' to know."""
        self._fail([job for job in batch if job.is_suspect], lambda row: ReplicaLost("the replica was lost twice"))
        first = [job for job in batch if not job.is_suspect]
        for job in batch:
            job.num_losses += 1
        self._give_back(first)

    def _give_back(self, batch: list[Job]) -> None:
        over = [job for job in batch if self._is_closed or job.is_deserted]
        self._fail(over, lambda row: Unavailable("the service is stopping"))
        again = [job for job in batch if not (self._is_closed or job.is_deserted)]
        self._queue.give_back(again)
        self._metrics.jobs_given_back.inc(len(again))
        self._filled.set()

    def _fail(self, jobs: Sequence[Job], error: Callable[[int], ServiceError]) -> None:
        self._flights.land(jobs)
        for job in jobs:
            job.fail(error)

    def _on_dropped(self, reason: DropReason, jobs: Sequence[Job]) -> None:
        self._metrics.dropped(reason, len(jobs))
        self._fail(jobs, lambda row: _too_late())

    def _oldest_age_s(self) -> float:
        arrival = self._queue.oldest_arrival()
        return 0.0 if arrival is None else self._clock() - arrival


def _resolve(answer: asyncio.Future[RequestResult], result: Result) -> None:
    if answer.done():  # the caller has gone
        return
    if isinstance(result, ServiceError):
        answer.set_exception(result)
    else:
        answer.set_result(result)


def _expire(pending: PendingRequest) -> None:
    pending.fail(_too_late(), "expired")


_FAILURES: dict[Failure, Callable[[int], ServiceError]] = {
    "failed": lambda row: InferenceFailed(f"the model failed on row {row} of this request"),
    "out_of_memory": lambda row: OutOfMemory(f"no memory for row {row} of this request"),
}


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the answer was there")
