"""Who is let into the queue: whoever has room in it and can be expected to be computed in time.

Knows the queue, the pace and what is in flight; computes no batch. Refusing is cheap and tells when to come back, so
that a server with far too much to do spends its time on what it has accepted.

The wait of a request is that of what is computed before it, in the order of the queue, and of what is in flight. It is
nobody's fault when nothing is before it: then it is always let in, and shows how long such a request really takes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from service.batching.latency_model import LatencyModels
from service.batching.queue import Queue
from service.domain import Encoding, RequestOptions
from service.errors import DeadlineUnreachable, QueueFull, ServiceError
from service.metric_labels import RefusalReason
from service.metrics import Metrics

BELIEVING = 0.1
"""Of the newest batch, in the average of how slow batches are."""

FARTHEST = 4.0
"""A batch that took this many times longer or shorter than expected counts as that many."""


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
    """A batch that a replica took at this time, expected to compute for so many seconds."""

    by: Hashable
    at: float
    seconds: float


@dataclass(slots=True)
class Pipe:
    """What one replica has: it computes the first, the others wait."""

    free_since: float
    batches: list[Taken] = field(default_factory=list)

    def began(self, batch: Taken) -> float:
        return max(batch.at, self.free_since)


class InFlightBatches:
    """`slowness` is what batches take, from the moment the replica was free for them, over what was expected."""

    def __init__(self) -> None:
        self.slowness = 1.0
        self._pipes: dict[Hashable, Pipe] = {}

    def take(self, by: Hashable, seconds: float, now: float) -> Taken:
        """`by` is the replica; no seconds where nothing was measured."""
        batch = Taken(by, now, seconds)
        self._pipes.setdefault(by, Pipe(now)).batches.append(batch)
        return batch

    def land(self, batch: Taken, now: float) -> None:
        pipe = self._pipes[batch.by]
        if batch.seconds:
            ratio = (now - pipe.began(batch)) / batch.seconds
            self.slowness += BELIEVING * (min(max(ratio, 1 / FARTHEST), FARTHEST) - self.slowness)
        pipe.free_since = now
        pipe.batches.remove(batch)
        if not pipe.batches:
            del self._pipes[batch.by]

    def left_s(self, now: float) -> float:
        """Seconds until all of it has landed, for one replica after the other."""
        return sum(self._left_s(pipe, pipe.batches, now) for pipe in self._pipes.values())

    def _left_s(self, pipe: Pipe, batches: Sequence[Taken], now: float) -> float:
        first, *others = batches
        left_of_first = max(0.0, self.slowness * first.seconds - (now - pipe.began(first)))
        return left_of_first + self.slowness * sum(batch.seconds for batch in others)


UNMEASURED_S = 1.0
LONGEST_S = 60.0
"""What a caller is told to wait when nothing was measured, and at most."""

HEADROOM = 1.5
"""Of a deadline over what is foreseen. Predictions are wrong by a fifth or so, and others may still come before what is
let in. With less, a server with far too much to do lets in just those that it is going to be late for."""


class Admission:
    """`max_queue_tokens` may wait, and nobody for more than `max_wait_s` as far as can be foreseen."""

    def __init__(
        self,
        queue: Queue,
        latency_models: LatencyModels,
        in_flight: InFlightBatches,
        *,
        max_queue_tokens: int,
        max_wait_s: float,
        num_replicas: Callable[[], int],
        metrics: Metrics,
    ) -> None:
        self._queue = queue
        self._latency_models = latency_models
        self._in_flight = in_flight
        self._max_queue_tokens = max_queue_tokens
        self._max_wait_s = max_wait_s
        self._num_replicas = num_replicas
        self._metrics = metrics

    def check(self, options: RequestOptions, encodings: Sequence[Encoding], now: float) -> None:
        """Raises QueueFull or DeadlineUnreachable. Without encodings: for a request of a row as they wait."""
        tokens = sum(encoding.num_tokens for encoding in encodings) or self._queue.row_tokens()
        num_jobs = len(encodings) or 1
        if self._is_full(options, tokens):
            detail = f"{self._queue.num_tokens} tokens wait already; the limit is {self._max_queue_tokens}"
            self._refuse(QueueFull, "queue_full", num_jobs, detail, self.wait_s(now))
        token_s = self._token_s()
        if token_s is None:
            return
        own_s, all_s = self._own_s(encodings), token_s * self._queue.num_tokens
        left_s = float("inf") if options.deadline is None else options.deadline - now
        if self._is_in_time(self._landing_s(now, all_s), max(own_s, all_s), left_s):
            return  # even as the last of all, which is quickly told
        wait_s = self._landing_s(now, token_s * self._queue.tokens_ahead(options, tokens))
        batch_s = max(own_s, token_s * self._batch_tokens())
        if not wait_s or self._is_in_time(wait_s, batch_s, left_s):
            return
        if wait_s > self._max_wait_s:
            detail = f"it would wait for {wait_s:.1f} s; the limit is {self._max_wait_s:g} s"
            self._refuse(QueueFull, "wait_too_long", num_jobs, detail, wait_s)
        needed_s = HEADROOM * (wait_s + batch_s)
        detail = f"it might be answered in {needed_s:.2f} s only; its deadline is in {left_s:.2f} s"
        self._refuse(DeadlineUnreachable, "deadline", num_jobs, detail, wait_s)

    def wait_s(self, now: float) -> float | None:
        """Seconds until all that waits and is in flight is computed; None when nothing was ever measured."""
        token_s = self._token_s()
        return None if token_s is None else self._landing_s(now, token_s * self._queue.num_tokens)

    def _landing_s(self, now: float, more_s: float) -> float:
        """Seconds until what is in flight has landed, and after it what takes one replica so much longer."""
        return (self._in_flight.left_s(now) + more_s) / max(1, self._num_replicas())

    def _token_s(self) -> float | None:
        """Seconds that one replica takes for one of the tokens that wait, at the rate at which batches really land."""
        predicted_s = 0.0
        for waiting in self._queue.waiting():
            seconds = self._latency_models.predict(*waiting)
            if seconds is None:
                return None
            predicted_s += seconds
        return self._in_flight.slowness * predicted_s / max(1, self._queue.num_tokens)

    def _own_s(self, encodings: Sequence[Encoding]) -> float:
        """Seconds of a batch of these rows, if they end in one of their own."""
        if not encodings:
            return 0.0
        tokens = sum(encoding.num_tokens for encoding in encodings)
        return (
            self._latency_models.predict(encodings[0].model, tokens, len(encodings)) or 0.0
        ) * self._in_flight.slowness

    def _batch_tokens(self) -> int:
        """Of a batch as full as what waits can make it."""
        return max(
            (min(tokens, self._latency_models.budget(model)) for model, tokens, _ in self._queue.waiting()), default=0
        )

    def _is_in_time(self, wait_s: float, batch_s: float, left_s: float) -> bool:
        """Whether that is no longer to wait than anybody may, and computed before the deadline. What is late already
        has another error."""
        return wait_s <= self._max_wait_s and not 0 < left_s < HEADROOM * (wait_s + batch_s)

    def _is_full(self, options: RequestOptions, tokens: int) -> bool:
        """For an account that has its part of it: who has nothing there is let in, or to wait might never help."""
        limit = self._max_queue_tokens
        return self._queue.num_tokens + tokens > limit and self._queue.exceeds_share(options, tokens, limit)

    def _refuse(
        self, error: type[ServiceError], reason: RefusalReason, num_jobs: int, detail: str, wait_s: float | None
    ) -> NoReturn:
        self._metrics.refused(reason, num_jobs)
        raise error(detail, retry_after_s=UNMEASURED_S if wait_s is None else min(LONGEST_S, wait_s))
