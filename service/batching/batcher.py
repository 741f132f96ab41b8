"""The batcher: requests put jobs into one queue, and feeders take batches out of it as soon as their replica has room.

There is no timer: while one batch is computed the next one grows. A batch is answered as a whole, except rows that fail
alone, or it is given back once, or it fails. Rows that are equal are computed once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

from service.batching.admission import Admission, InFlightBatches
from service.batching.batch import Batch, BatchNotStarted, BatchResult, Replica
from service.batching.jobs import InFlightRows, Job, PendingRequest, RequestResult, deadline_exceeded
from service.batching.latency_model import LatencyModels
from service.batching.queue import Queue
from service.batching.result_cache import LabelCache, ResultCache
from service.domain import DEFAULT_OPTIONS, Encoding, Failure, Output, RequestOptions
from service.errors import InferenceFailed, OutOfMemory, ReplicaLost, ServiceError, Unavailable
from service.metric_labels import DropReason
from service.metrics import Metrics
from service.tracing.trace import NO_TRACER, BatchTrace, Tracer, current

logger = logging.getLogger(__name__)

LABEL_CACHE_BYTES = 64 * 2**20


class Batcher:
    """One queue, any number of feeders. Lives on one event loop.

    `latency_models` bound the tokens of a batch (a longer row goes alone), `max_queue_tokens` and `max_wait_s` what may
    wait; every fourth batch is for jobs older than `max_age_s`.
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
        cache: ResultCache | None = None,
        label_cache_bytes: int = LABEL_CACHE_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._latency_models = latency_models
        self._metrics = metrics
        self._tracer = tracer
        self._cache = cache
        self._label_cache = LabelCache(max_bytes=label_cache_bytes, metrics=metrics)
        self._clock = clock
        self._queue = Queue(latency_models=latency_models, max_age_s=max_age_s, on_dropped=self._on_dropped)
        self._in_flight_rows = InFlightRows()
        self._in_flight = InFlightBatches()
        self._admission = Admission(
            self._queue,
            latency_models,
            self._in_flight,
            max_queue_tokens=max_queue_tokens,
            max_wait_s=max_wait_s,
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
        """Raises what `submit` would raise for a request that is not read yet, so that it need not be read.

        With a result cache every request is admitted here: cached rows are answered however much waits.
        """
        if self._cache is not None:
            return
        if self._is_closed:
            self._metrics.refused("draining", 1)
            raise Unavailable("the service is stopping")
        self._admission.check(options, self._clock())

    async def submit(self, encodings: Sequence[Encoding], options: RequestOptions = DEFAULT_OPTIONS) -> RequestResult:
        """Waits until all rows are computed.

        When the caller is cancelled or the deadline passes, those of its jobs that still wait, and that no other
        request waits for, are never computed.

        Raises:
            QueueFull, DeadlineUnreachable, Unavailable: not admitted.
            DeadlineExceeded, ReplicaLost, InferenceFailed, OutOfMemory: admitted, and not answered.
        """
        if not encodings:
            return RequestResult([], 0.0, 0.0)
        if self._is_closed:
            self._metrics.refused("draining", len(encodings))
            raise Unavailable("the service is stopping")
        now = self._clock()
        cached = self._cached(encodings)
        missing = [row for row in range(len(encodings)) if row not in cached]
        if missing:
            self._check_admission([encodings[row] for row in missing], options, now)
        future: asyncio.Future[RequestResult] = asyncio.get_running_loop().create_future()
        pending = PendingRequest(encodings, now, options, future, current.get())
        jobs = self._enqueue(pending, missing)
        pending.settle_cached(cached, now)
        try:
            return await future
        finally:
            if pending.closed != "answered":
                self._abandon(pending, jobs)

    async def feed(self, replica: Replica) -> None:
        """Takes batches for the replica, one at a time, until the replica is lost or the batcher is closed."""
        self._in_flight.attach(replica.name)
        try:
            while batch := await self._take():
                if not await self._compute(replica, batch):
                    return
        finally:
            self._in_flight.detach(replica.name)

    def close(self) -> None:
        """Ends the feeders, fails the requests that wait, and admits no more."""
        self._is_closed = True
        self._in_flight_rows.fail(self._queue.drain(), _stopping)
        self._filled.set()

    def distrust_results(self) -> None:
        """A device was found to compute wrong numbers: drops the results that may be its own."""
        self._label_cache.clear()
        if self._cache is not None:
            self._cache.clear()

    def is_kept(self, encoding: Encoding) -> bool:
        """Whether the output of a row with `kept_as` is there, so that it costs nothing."""
        return encoding in self._label_cache

    # requests

    def _cached(self, encodings: Sequence[Encoding]) -> dict[int, Output]:
        """Outputs from the caches, by row."""
        # Rows that are kept are the last ones of a request.
        cached = self._label_cache.find(encodings) if encodings[-1].kept_as else {}
        if self._cache is None:
            return cached
        found = {row: self._cache.get(each) for row, each in enumerate(encodings) if each.kept_as is None}
        return cached | {row: output for row, output in found.items() if output is not None}

    def _check_admission(self, encodings: Sequence[Encoding], options: RequestOptions, now: float) -> None:
        num_tokens, num_rows = sum([encoding.cost for encoding in encodings]), len(encodings)
        expected_s = self._predict(encodings, num_tokens)
        self._admission.check(options, now, num_tokens=num_tokens, num_rows=num_rows, expected_s=expected_s)

    def _predict(self, encodings: Sequence[Encoding], num_tokens: int) -> float | None:
        """Seconds of these rows in batches of their own, one after the other; None while nothing was measured."""
        model = encodings[0].model
        if model == encodings[-1].model:  # the rows of a model stand together
            return self._latency_models.predict(model, num_tokens, len(encodings))
        by_model: dict[str, list[int]] = {}
        for encoding in encodings:
            by_model.setdefault(encoding.model, []).append(encoding.cost)
        predicted = [self._latency_models.predict(each, sum(costs), len(costs)) for each, costs in by_model.items()]
        return None if None in predicted else sum([seconds for seconds in predicted if seconds is not None])

    def _enqueue(self, pending: PendingRequest, rows: Sequence[int]) -> list[Job]:
        """Queues a job for each of the rows, unless an equal row is in flight already."""
        if not rows:
            return []
        jobs = self._in_flight_rows.add(pending, rows)
        if len(rows) > sum([job.is_new for job in jobs]):
            shared = Counter([pending.encodings[row].model for row in rows])
            shared.subtract([job.encoding.model for job in jobs if job.is_new])
            for model, num_shared in shared.items():
                self._metrics.shared(model, num_shared)
        self._queue.push(jobs, pending.options)
        self._filled.set()
        return jobs

    def _abandon(self, pending: PendingRequest, jobs: Sequence[Job]) -> None:
        """The request failed, expired or was cancelled: drops the jobs that only it waited for."""
        reason = pending.closed or "cancelled"
        pending.close(reason)
        if reason != "answered":
            self._queue.remove([job for job in jobs if job.is_deserted], reason)

    # batches

    async def _take(self) -> Batch | None:
        """The next batch, as soon as there is one; None once the batcher is closed."""
        while not (batch := self._queue.take(self._clock())) and not self._is_closed:
            self._filled.clear()
            await self._filled.wait()
        return batch

    async def _compute(self, replica: Replica, batch: Batch) -> bool:
        """Runs the batch and settles it. False when the replica is lost."""
        taken_at = self._clock()
        taken = self._in_flight.take(replica.name, batch, taken_at)
        self._metrics.batch_taken([taken_at - job.arrived for job in batch.jobs], batch.num_tokens)
        result: BatchResult | None = None
        error: BaseException | None = None
        try:
            result = await replica.run(batch)
            self._settle(replica, batch, result)
        except BatchNotStarted as lost:
            error = lost
            self._give_back(batch.jobs)
        except ReplicaLost as lost:
            error = lost
            self._blame(batch.jobs)
        except asyncio.CancelledError as cancelled:
            error = cancelled
            self._give_back(batch.jobs)
            raise
        except Exception as failed:  # the outermost handler: one bad batch must not end the feeder
            error = failed
            logger.exception("batch failed", extra={"rows": len(batch.jobs), "tokens": batch.num_tokens})
            self._in_flight_rows.fail(
                batch.jobs, lambda row: InferenceFailed("the batch of this request could not be computed")
            )
        finally:
            self._metrics.batch_finished(batch.num_tokens)
            self._in_flight.finish(taken, self._clock())
            if self._tracer.is_enabled:
                self._trace(replica, batch, taken_at, result, error)
        return not isinstance(error, ReplicaLost)

    def _settle(self, replica: Replica, batch: Batch, result: BatchResult) -> None:
        if len(result.outputs) != len(batch.jobs):
            raise ValueError(f"{len(result.outputs)} outputs for a batch of {len(batch.jobs)}")
        now, num_rows = self._clock(), len(batch.jobs)
        num_failed = sum([not isinstance(output, Output) for output in result.outputs])
        if result.fitting_tokens is not None:
            self._metrics.ran_out_of_memory(batch.model)
            self._latency_models.limit_memory(batch.model, result.fitting_tokens)
        elif not num_failed:  # the search for a row that fails takes longer than the batch
            self._latency_models.note(batch.model, batch.num_tokens, num_rows, result.compute_s)
        self._metrics.batch_computed(
            batch.model,
            replica.name,
            rows=num_rows,
            failed_rows=num_failed,
            tokens=batch.num_tokens,
            seconds=result.compute_s,
        )
        for job, output in zip(batch.jobs, result.outputs, strict=True):
            cache = self._cache if job.encoding.kept_as is None else self._label_cache
            if cache is not None and isinstance(output, Output):
                cache.put(job.encoding, output)
        self._in_flight_rows.remove(batch.jobs)
        for job, output in zip(batch.jobs, result.outputs, strict=True):
            if isinstance(output, Output):
                job.settle(output, result.compute_s, now)
            else:
                job.fail(_FAILURES[output])

    def _blame(self, jobs: Sequence[Job]) -> None:
        """The replica was lost while it computed these jobs: the first loss sends a job back to the head of the queue,
        the second fails its requests."""
        self._in_flight_rows.fail(
            [job for job in jobs if job.num_losses], lambda row: ReplicaLost("the replica was lost twice")
        )
        first_loss = [job for job in jobs if not job.num_losses]
        for job in jobs:
            job.num_losses += 1
        self._give_back(first_loss)

    def _give_back(self, jobs: Sequence[Job]) -> None:
        wanted = [job for job in jobs if not (self._is_closed or job.is_deserted)]
        self._in_flight_rows.fail([job for job in jobs if self._is_closed or job.is_deserted], _stopping)
        self._queue.give_back(wanted)
        self._metrics.given_back(len(wanted))
        self._filled.set()

    def _trace(
        self,
        replica: Replica,
        batch: Batch,
        taken_at: float,
        result: BatchResult | None,
        error: BaseException | None,
    ) -> None:
        now = self._clock()
        fields = {
            "model": batch.model,
            "rows": len(batch.jobs),
            "tokens": batch.num_tokens,
            "replica": replica.name,
        }
        name = type(error).__name__ if error else ""
        compute_s = result.compute_s if result and not error else 0.0
        waiting = [(pending.trace, now - pending.arrived) for job in batch.jobs for pending, _ in job.waiters]
        self._tracer.batch(BatchTrace(now - taken_at, compute_s, name, fields), waiting)

    def _on_dropped(self, reason: DropReason, jobs: Sequence[Job]) -> None:
        self._metrics.dropped(reason, len(jobs))
        self._in_flight_rows.fail(jobs, lambda row: deadline_exceeded())

    def _oldest_age_s(self) -> float:
        arrival = self._queue.oldest_arrival()
        return 0.0 if arrival is None else self._clock() - arrival


def _stopping(row: int) -> ServiceError:
    return Unavailable("the service is stopping")


_FAILURES: dict[Failure, Callable[[int], ServiceError]] = {
    "failed": lambda row: InferenceFailed("the model failed on this text", row=row),
    "out_of_memory": lambda row: OutOfMemory("the device has no memory for this text", row=row),
}
