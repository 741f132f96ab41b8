"""Admission: which requests enter the queue, from the time that is left of batches in flight and the work that waits.

A request is refused when the queue is full or its answer cannot be expected in time. A refusal is cheap and names when
to come back, so a server with far too much to do spends its time on what it has accepted. The wait of a request is that
of the work before it in the order of the queue and of the batches in flight. A request with nothing before it is always
admitted: its time is measured by running it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NoReturn

from service.batching.batch import Batch
from service.batching.latency_model import LatencyModels
from service.batching.queue import Queue
from service.domain import RequestOptions
from service.errors import DeadlineUnreachable, QueueFull, ServiceError
from service.metric_labels import RefusalReason
from service.metrics import Metrics

UNMEASURED_RETRY_S = 1.0
MAX_RETRY_S = 60.0
"""Retry-After where nothing was measured yet, and its upper limit."""

HEADROOM = 1.5
"""Deadline over forecast. Forecasts are off by a fifth or so, and other requests may still go before this one. With
less headroom an overloaded server admits just those requests that it will answer late."""

SMOOTHING = 0.1
"""Weight of the newest batch in the moving average `slowness`."""

MAX_SLOWNESS = 4.0
"""A batch that took this many times longer or shorter than predicted counts as that many."""


@dataclass(frozen=True, slots=True, eq=False)
class InFlightBatch:
    """A batch that a replica has taken at time `taken_at`, with its predicted compute time (0.0: not measured)."""

    replica: str
    taken_at: float
    expected_s: float


@dataclass(slots=True)
class ReplicaPipe:
    """The batches at one replica: it computes the first, the others wait."""

    free_since: float
    batches: list[InFlightBatch] = field(default_factory=list)

    def started_at(self, batch: InFlightBatch) -> float:
        return max(batch.taken_at, self.free_since)


class InFlightBatches:
    """The batches that were taken and have not come back, and the replicas that are fed.

    `slowness` is the time of batches, from the moment the replica was free for them, over their prediction. It holds
    what the engine does not measure: the pipe and a busy event loop. In simulated overload with 50 ms of such delay per
    batch 61 % of the admitted requests are late without it, none with it (tests/unit/batching/test_overload.py).
    """

    def __init__(self) -> None:
        self.slowness = 1.0
        self._pipes: dict[str, ReplicaPipe] = {}
        self._feeders: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum([len(pipe.batches) for pipe in self._pipes.values()])

    @property
    def num_replicas(self) -> int:
        """Replicas that are fed at the moment."""
        return len(self._feeders)

    def attach(self, replica: str) -> None:
        """A feeder of the replica has started."""
        self._feeders[replica] += 1

    def detach(self, replica: str) -> None:
        self._feeders[replica] -= 1
        if not self._feeders[replica]:
            del self._feeders[replica]

    def take(self, replica: str, batch: Batch, now: float) -> InFlightBatch:
        taken = InFlightBatch(replica, now, batch.expected_s or 0.0)
        self._pipes.setdefault(replica, ReplicaPipe(now)).batches.append(taken)
        return taken

    def finish(self, taken: InFlightBatch, now: float) -> None:
        """The batch came back, whatever became of it."""
        pipe = self._pipes[taken.replica]
        if taken.expected_s:
            ratio = (now - pipe.started_at(taken)) / taken.expected_s
            self.slowness += SMOOTHING * (min(max(ratio, 1 / MAX_SLOWNESS), MAX_SLOWNESS) - self.slowness)
        pipe.free_since = now
        pipe.batches.remove(taken)
        if not pipe.batches:
            del self._pipes[taken.replica]

    def left_s(self, now: float) -> float:
        """Seconds until all of them are back, summed over the replicas."""
        return sum([self._left_s(pipe, now) for pipe in self._pipes.values()])

    def _left_s(self, pipe: ReplicaPipe, now: float) -> float:
        first, *others = pipe.batches
        left_of_first = max(0.0, self.slowness * first.expected_s - (now - pipe.started_at(first)))
        return left_of_first + self.slowness * sum([batch.expected_s for batch in others])


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds until a request starts to compute, and seconds of the batch that it is then in."""

    wait_s: float
    batch_s: float

    def is_in_time(self, max_wait_s: float, left_s: float) -> bool:
        """Within the longest wait, and answered before the deadline in `left_s`; a deadline that has passed (left_s <=
        0) has an error of its own."""
        return self.wait_s <= max_wait_s and not 0 < left_s < HEADROOM * (self.wait_s + self.batch_s)


class Admission:
    """At most `max_queue_tokens` wait, and no request for more than `max_wait_s` as far as can be predicted."""

    def __init__(
        self,
        queue: Queue,
        latency_models: LatencyModels,
        in_flight: InFlightBatches,
        *,
        max_queue_tokens: int,
        max_wait_s: float,
        metrics: Metrics,
    ) -> None:
        self._queue = queue
        self._latency_models = latency_models
        self._in_flight = in_flight
        self._max_queue_tokens = max_queue_tokens
        self._max_wait_s = max_wait_s
        self._metrics = metrics

    def check(
        self,
        options: RequestOptions,
        now: float,
        *,
        num_tokens: int | None = None,
        num_rows: int = 1,
        expected_s: float | None = None,
    ) -> None:
        """Raises QueueFull or DeadlineUnreachable.

        `expected_s` is the predicted time of these rows in a batch of their own. Without `num_tokens` the request is
        not read yet, and counts as one row of the mean length of those that wait.
        """
        if not self._queue.num_tokens and not len(self._in_flight):
            return
        tokens = self._queue.row_tokens() if num_tokens is None else num_tokens
        if self._is_full(options, tokens):
            detail = f"{self._queue.num_tokens} tokens wait already; the limit is {self._max_queue_tokens}"
            self._refuse(QueueFull, "queue_full", num_rows, detail, self.wait_s(now))
        token_s = self._token_s()
        if token_s is None:
            return
        own_s, all_s = (expected_s or 0.0) * self._in_flight.slowness, token_s * self._queue.num_tokens
        left_s = float("inf") if options.deadline is None else options.deadline - now
        as_the_last = Forecast(self._start_s(now, all_s), max(own_s, all_s))
        if as_the_last.is_in_time(self._max_wait_s, left_s):
            return  # the usual case, at little cost
        ahead_s = token_s * self._queue.tokens_ahead(options, tokens)
        forecast = Forecast(self._start_s(now, ahead_s), max(own_s, token_s * self._batch_tokens()))
        if not forecast.wait_s or forecast.is_in_time(self._max_wait_s, left_s):
            return
        if forecast.wait_s > self._max_wait_s:
            detail = f"it would wait for {forecast.wait_s:.1f} s; the limit is {self._max_wait_s:g} s"
            self._refuse(QueueFull, "wait_too_long", num_rows, detail, forecast.wait_s)
        needed_s = HEADROOM * (forecast.wait_s + forecast.batch_s)
        detail = f"it might be answered in {needed_s:.2f} s only; its deadline is in {left_s:.2f} s"
        self._refuse(DeadlineUnreachable, "deadline", num_rows, detail, forecast.wait_s)

    def wait_s(self, now: float) -> float | None:
        """Seconds until everything that waits and is in flight is computed; None while nothing was measured."""
        token_s = self._token_s()
        return None if token_s is None else self._start_s(now, token_s * self._queue.num_tokens)

    def _start_s(self, now: float, ahead_s: float) -> float:
        """Seconds until the batches in flight are back and `ahead_s` of one replica's work after them is done."""
        return (self._in_flight.left_s(now) + ahead_s) / max(1, self._in_flight.num_replicas)

    def _token_s(self) -> float | None:
        """Seconds that one replica takes per token that waits, at the rate at which batches really come back."""
        predicted_s = 0.0
        for model, num_tokens, num_rows in self._queue.waiting():
            seconds = self._latency_models.predict(model, num_tokens, num_rows)
            if seconds is None:
                return None
            predicted_s += seconds
        return self._in_flight.slowness * predicted_s / max(1, self._queue.num_tokens)

    def _batch_tokens(self) -> int:
        """Tokens of a batch as full as what waits can make it."""
        waiting = self._queue.waiting()
        return max((min(tokens, self._latency_models.budget(model)) for model, tokens, _ in waiting), default=0)

    def _is_full(self, options: RequestOptions, tokens: int) -> bool:
        """Whether the queue is full for this account: an account with nothing waiting is admitted, or a busy queue
        could keep it out for good."""
        limit = self._max_queue_tokens
        return self._queue.num_tokens + tokens > limit and self._queue.exceeds_share(options, tokens, limit)

    def _refuse(
        self, error: type[ServiceError], reason: RefusalReason, num_rows: int, detail: str, wait_s: float | None
    ) -> NoReturn:
        self._metrics.refused(reason, num_rows)
        raise error(detail, retry_after_s=UNMEASURED_RETRY_S if wait_s is None else min(MAX_RETRY_S, wait_s))
