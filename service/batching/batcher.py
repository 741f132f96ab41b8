"""The batcher: requests put jobs into one queue, feeders take batches out of it the moment they have room.

Knows no process, no engine and no HTTP. There is no timer: while a batch is computed the next one grows. A batch is
wholly answered, but for rows that fail alone, or given back once, or failed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from service.batching.job import Job, Settled, Ticket
from service.batching.queue import Queue
from service.batching.rate import DrainRate
from service.batching.run import Ran, Run
from service.domain import Encoding
from service.errors import DeadlineExceeded, InferenceFailed, QueueFull, ReplicaLost, ServiceError, Unavailable
from service.metrics import DropReason, Metrics

logger = logging.getLogger(__name__)

Result = Settled | ServiceError


class Batcher:
    """One queue, any number of feeders. Lives on one event loop.

    `max_batch_tokens` bounds a batch (a longer row goes alone), `max_queue_tokens` what may wait, and nobody who has
    waited `max_age_s` is overtaken.
    """

    def __init__(
        self,
        *,
        max_batch_tokens: int,
        max_queue_tokens: int,
        metrics: Metrics,
        max_age_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_batch_tokens = max_batch_tokens
        self._max_queue_tokens = max_queue_tokens
        self._metrics = metrics
        self._clock = clock
        self._queue = Queue(max_age_s=max_age_s, dropped=self._on_dropped)
        self._rate = DrainRate()
        self._is_closed = False
        self._filled = asyncio.Event()
        metrics.watch_queue(lambda: len(self._queue), lambda: self._queue.num_tokens, self._oldest_age_s)

    async def submit(
        self, encodings: Sequence[Encoding], *, deadline: float | None = None, priority: int = 0
    ) -> Settled:
        """Waits until all rows are computed; `deadline` is a time of the batcher's clock, higher priority goes first.

        Raises QueueFull, Unavailable, DeadlineExceeded, ReplicaLost, InferenceFailed. When the caller is cancelled or
        the deadline passes, its jobs that still wait are never computed.
        """
        if not encodings:
            return Settled([], 0.0, 0.0)
        self._admit(encodings)
        now = self._clock()
        answer: asyncio.Future[Settled] = asyncio.get_running_loop().create_future()
        ticket = Ticket(encodings, now, partial(_resolve, answer), deadline, priority)
        jobs = ticket.jobs()
        self._queue.push(jobs)
        self._filled.set()
        reason: DropReason = "cancelled"
        try:
            async with asyncio.timeout(None if deadline is None else deadline - now):
                return await answer
        except TimeoutError:
            reason = "expired"
            raise _too_late() from None
        except ServiceError:
            reason = "abandoned"
            raise
        finally:
            ticket.close(reason)
            self._queue.remove(jobs, reason)

    async def feed(self, run: Run) -> None:
        """Takes and computes batches, one at a time, until `run` is lost or there will be no more jobs."""
        while batch := await self._take():
            if not await self._compute(run, batch):
                return

    def close(self) -> None:
        """Ends the feeders, fails whoever still waits, and lets no job in any more."""
        self._is_closed = True
        for job in self._queue.drain():
            job.ticket.fail(Unavailable("the service is stopping"))
        self._filled.set()

    def _admit(self, encodings: Sequence[Encoding]) -> None:
        if self._is_closed:
            self._metrics.refused("draining", len(encodings))
            raise Unavailable("the service is stopping")
        waiting = self._queue.num_tokens
        total = waiting + sum(encoding.num_tokens for encoding in encodings)
        # A request above the limit by itself is let into an empty queue: to wait would never help it.
        if waiting and total > self._max_queue_tokens:
            self._metrics.refused("queue_full", len(encodings))
            detail = f"{waiting} tokens wait already; the limit is {self._max_queue_tokens}"
            raise QueueFull(detail, retry_after_s=self._rate.seconds_for(waiting))

    async def _take(self) -> list[Job]:
        """The next batch, as soon as there is one; empty when there will be none."""
        while True:
            batch = self._queue.take(self._clock(), self._max_batch_tokens)
            if batch or self._is_closed:
                return batch
            self._filled.clear()
            await self._filled.wait()

    async def _compute(self, run: Run, batch: list[Job]) -> bool:
        """Settles the batch; False when `run` is lost."""
        taken, tokens = self._clock(), sum(job.num_tokens for job in batch)
        self._metrics.taken((taken - job.ticket.arrived for job in batch), tokens)
        try:
            ran = await run([job.encoding for job in batch])
            self._settle(batch, ran, taken, tokens)
        except (ReplicaLost, asyncio.CancelledError) as lost:
            self._give_back(batch)
            if isinstance(lost, asyncio.CancelledError):
                raise
            return False
        except Exception:  # the loop's edge: one bad batch must not end the feeder
            logger.exception("batch failed", extra={"rows": len(batch), "tokens": tokens})
            _fail(batch, lambda: InferenceFailed("the batch of this request could not be computed"))
        finally:
            self._metrics.landed(tokens)
        return True

    def _settle(self, batch: list[Job], ran: Ran, taken: float, tokens: int) -> None:
        if len(ran.outputs) != len(batch):
            raise ValueError(f"{len(ran.outputs)} outputs for a batch of {len(batch)}")
        now = self._clock()
        self._rate.note(tokens, taken, now)
        num_failed = sum(output is None for output in ran.outputs)
        model = batch[0].encoding.model
        self._metrics.computed(model, rows=len(batch), failed_rows=num_failed, tokens=tokens, seconds=ran.compute_s)
        for job, output in zip(batch, ran.outputs, strict=True):
            if output is None:
                job.ticket.fail(InferenceFailed(f"the model failed on row {job.row} of this request"))
            else:
                job.ticket.settle(job.row, output, ran.compute_s, now)

    def _give_back(self, batch: list[Job]) -> None:
        """A job's first loss sends it back to the head of the queue, its second is its caller's to know."""
        wanted = [job for job in batch if not job.ticket.is_closed]
        _fail((job for job in wanted if job.num_losses), lambda: ReplicaLost("the replica was lost twice"))
        again = [job for job in wanted if not job.num_losses and not job.ticket.is_closed]
        if self._is_closed:
            _fail(again, lambda: Unavailable("the service is stopping"))
            return
        self._queue.give_back(again)
        self._metrics.jobs_given_back.inc(len(again))
        self._filled.set()

    def _on_dropped(self, reason: DropReason, jobs: Sequence[Job]) -> None:
        self._metrics.dropped(reason, len(jobs))
        if reason == "expired":
            _fail(jobs, _too_late)

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


def _fail(jobs: Iterable[Job], error: Callable[[], ServiceError]) -> None:
    """Each ticket gets an error of its own: a raised exception carries its traceback."""
    for job in jobs:
        job.ticket.fail(error())


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the answer was there")
