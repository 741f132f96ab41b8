"""The batcher: requests put jobs into one queue, feeders take batches out of it the moment they have room.

Knows no process, no engine and no HTTP. There is no timer: while a batch is computed the next one grows. A batch is
wholly answered, but for rows that fail alone, or given back once, or failed. Rows that are equal are computed once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from service.batching.cache import Cache, NoCache
from service.batching.flights import Flights
from service.batching.job import Job, Settled, Ticket
from service.batching.pace import Pace
from service.batching.queue import Queue
from service.batching.run import Ran, Run
from service.domain import ANY_TIME, Encoding, Terms
from service.errors import DeadlineExceeded, InferenceFailed, QueueFull, ReplicaLost, ServiceError, Unavailable
from service.metrics import DropReason, Metrics

logger = logging.getLogger(__name__)

Result = Settled | ServiceError

UNMEASURED_S = 1.0
LONGEST_S = 60.0
"""What a caller is told to wait when nothing was measured, and at most."""


class Batcher:
    """One queue, any number of feeders. Lives on one event loop.

    `pace` bounds a batch (a longer row goes alone), `max_queue_tokens` what may wait, and a share of the batches is for
    who has waited `max_age_s`. `num_replicas` tells how many compute at the moment.
    """

    def __init__(
        self,
        *,
        pace: Pace,
        max_queue_tokens: int,
        metrics: Metrics,
        max_age_s: float = 2.0,
        cache: Cache | None = None,
        num_replicas: Callable[[], int] = lambda: 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pace = pace
        self._max_queue_tokens = max_queue_tokens
        self._metrics = metrics
        self._cache = NoCache() if cache is None else cache
        self._num_replicas = num_replicas
        self._clock = clock
        self._queue = Queue(max_age_s=max_age_s, budget=pace.budget, dropped=self._on_dropped)
        self._flights = Flights()
        self._is_closed = False
        self._filled = asyncio.Event()
        metrics.watch_queue(
            lambda: len(self._queue),
            lambda: self._queue.num_tokens,
            self._oldest_age_s,
            lambda: self.predicted_wait_s() or 0.0,
        )

    async def submit(self, encodings: Sequence[Encoding], terms: Terms = ANY_TIME) -> Settled:
        """Waits until all rows are computed.

        Raises QueueFull, Unavailable, DeadlineExceeded, ReplicaLost, InferenceFailed. When the caller is cancelled or
        the deadline passes, its jobs that still wait, and that nobody else waits for, are never computed.
        """
        if not encodings:
            return Settled([], 0.0, 0.0)
        now = self._clock()
        answer: asyncio.Future[Settled] = asyncio.get_running_loop().create_future()
        ticket = Ticket(encodings, now, partial(_resolve, answer), terms)
        jobs = self._enter(ticket)
        reason: DropReason = "cancelled"
        try:
            async with asyncio.timeout(None if terms.deadline is None else terms.deadline - now):
                return await answer
        except TimeoutError:
            reason = "expired"
            raise _too_late() from None
        except ServiceError:
            reason = "abandoned"
            raise
        finally:
            ticket.close(reason)
            self._queue.remove([job for job in jobs if job.is_deserted], reason)

    async def feed(self, run: Run) -> None:
        """Takes and computes batches, one at a time, until `run` is lost or there will be no more jobs."""
        while batch := await self._take():
            if not await self._compute(run, batch):
                return

    def close(self) -> None:
        """Ends the feeders, fails whoever still waits, and lets no job in any more."""
        self._is_closed = True
        self._fail(self._queue.drain(), lambda row: Unavailable("the service is stopping"))
        self._filled.set()

    def predicted_wait_s(self) -> float | None:
        """Seconds until all that waits is computed; None when nothing was ever measured."""
        predicted = [self._pace.predict(model, tokens, rows) for model, tokens, rows in self._queue.waiting()]
        known = [seconds for seconds in predicted if seconds is not None]
        if len(known) < len(predicted):
            return None
        return sum(known) / max(1, self._num_replicas())

    def _enter(self, ticket: Ticket) -> list[Job]:
        """Answers what was kept, and puts a job for every other row into the queue, unless one is in flight already."""
        if self._is_closed:
            self._metrics.refused("draining", len(ticket.encodings))
            raise Unavailable("the service is stopping")
        kept = [self._cache.get(encoding) for encoding in ticket.encodings]
        rows = [row for row, output in enumerate(kept) if output is None]
        self._admit([ticket.encodings[row] for row in rows])
        for row, output in enumerate(kept):
            if output is not None:
                ticket.settle(row, output, 0.0, ticket.arrived)
        jobs = self._flights.board(ticket, rows)
        num_shared = len(rows) - sum(job.is_new for job in jobs)
        if num_shared:
            self._metrics.shared_rows.labels(ticket.encodings[0].model).inc(num_shared)
        self._queue.push(jobs, ticket.terms.priority)
        self._filled.set()
        return jobs

    def _admit(self, encodings: Sequence[Encoding]) -> None:
        waiting = self._queue.num_tokens
        total = waiting + sum(encoding.num_tokens for encoding in encodings)
        # A request above the limit by itself is let into an empty queue: to wait would never help it.
        if encodings and waiting and total > self._max_queue_tokens:
            self._metrics.refused("queue_full", len(encodings))
            detail = f"{waiting} tokens wait already; the limit is {self._max_queue_tokens}"
            predicted = self.predicted_wait_s()
            raise QueueFull(detail, retry_after_s=UNMEASURED_S if predicted is None else min(LONGEST_S, predicted))

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
            self._settle(batch, await run([job.encoding for job in batch]), tokens)
        except (ReplicaLost, asyncio.CancelledError) as lost:
            self._give_back(batch)
            if isinstance(lost, asyncio.CancelledError):
                raise
            return False
        except Exception:  # the loop's edge: one bad batch must not end the feeder
            logger.exception("batch failed", extra={"rows": len(batch), "tokens": tokens})
            self._fail(batch, lambda row: InferenceFailed("the batch of this request could not be computed"))
        finally:
            self._metrics.landed(tokens)
        return True

    def _settle(self, batch: list[Job], ran: Ran, tokens: int) -> None:
        if len(ran.outputs) != len(batch):
            raise ValueError(f"{len(ran.outputs)} outputs for a batch of {len(batch)}")
        now, model = self._clock(), batch[0].encoding.model
        num_failed = sum(output is None for output in ran.outputs)
        self._metrics.computed(model, rows=len(batch), failed_rows=num_failed, tokens=tokens, seconds=ran.compute_s)
        if not num_failed:  # the search for a bad row takes longer than a batch does
            self._pace.note(model, tokens, len(batch), ran.compute_s)
        self._flights.land(batch)
        for job, output in zip(batch, ran.outputs, strict=True):
            if output is None:
                job.fail(lambda row: InferenceFailed(f"the model failed on row {row} of this request"))
            else:
                self._cache.put(job.encoding, output)
                job.settle(output, ran.compute_s, now)

    def _give_back(self, batch: list[Job]) -> None:
        """A job's first loss sends it back to the head of the queue, its second is its callers' to know."""
        self._fail([job for job in batch if job.num_losses], lambda row: ReplicaLost("the replica was lost twice"))
        once = [job for job in batch if not job.num_losses]
        over = [job for job in once if self._is_closed or job.is_deserted]
        self._fail(over, lambda row: Unavailable("the service is stopping"))
        again = [job for job in once if not (self._is_closed or job.is_deserted)]
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


def _resolve(answer: asyncio.Future[Settled], result: Result) -> None:
    if answer.done():  # the caller has gone
        return
    if isinstance(result, ServiceError):
        answer.set_exception(result)
    else:
        answer.set_result(result)


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the answer was there")
