"""The load of the service over the last seconds, from its own metrics: for people who look, not for alerts.

Prometheus' rates need its database; a key for inference has no access to `/metrics`. Readings are taken when the route
is called, so an idle service computes nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from service.api.request import PlainRoute
from service.metrics import Metrics

PATH = "/v1/load"
WINDOW_S = 30.0
"""The readings of this time are compared: at most so old is the first one."""
FRESH_S = 0.5
"""Callers within this time share a reading: a hundred open pages cost no more than one."""


class LoadReply(BaseModel):
    """The load of this server process. What needs two readings is null until there are two: call again."""

    window_s: float | None
    requests_per_s: float | None
    p95_ms: float | None
    requests_in_progress: int
    queue_rows: int
    queue_tokens: int
    queue_wait_ms: float
    batch_rows: float | None
    batch_tokens: float | None


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters at one time; `durations` are the cumulative buckets: upper limit in seconds -> requests."""

    at: float
    requests: float
    durations: dict[float, float]
    batches: float
    rows: float
    tokens: float


def samples(metric: Any, suffix: str = "") -> Iterable[Any]:
    return (one for family in metric.collect() for one in family.samples if one.name.endswith(suffix))


def total(metric: Any, suffix: str = "") -> float:
    return float(sum(one.value for one in samples(metric, suffix)))


def take(metrics: Metrics, now: float) -> Reading:
    durations: dict[float, float] = {}
    for one in samples(metrics.request_duration, "_bucket"):
        limit = float(one.labels["le"])
        durations[limit] = durations.get(limit, 0.0) + one.value
    return Reading(
        now,
        total(metrics.requests, "_total"),
        durations,
        total(metrics.batches, "_total"),
        total(metrics.batch_rows, "_sum"),
        total(metrics.batch_tokens, "_sum"),
    )


def quantile(share: float, buckets: dict[float, float]) -> float | None:
    """As Prometheus' histogram_quantile: linear within a bucket; the highest finite limit for values above it."""
    limits = sorted(buckets)
    count = buckets[limits[-1]] if limits else 0.0
    if not count:
        return None
    rank, below, counted = share * count, 0.0, 0.0
    for limit in limits[:-1]:
        if buckets[limit] >= rank:
            return below + (limit - below) * (rank - counted) / (buckets[limit] - counted)
        below, counted = limit, buckets[limit]
    return below


class LoadRoutes:
    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._clock = clock
        self._readings: deque[Reading] = deque()

    async def load(self, request: Request) -> Response:
        return Response(self.reply().model_dump_json(), media_type="application/json")

    def reply(self) -> LoadReply:
        now, readings = self._clock(), self._readings
        if not readings or now - readings[-1].at >= FRESH_S:
            readings.append(take(self._metrics, now))
        while now - readings[0].at > WINDOW_S:
            readings.popleft()
        first, last = readings[0], readings[-1]
        seconds, requests, batches = last.at - first.at, last.requests - first.requests, last.batches - first.batches
        durations = {limit: count - first.durations.get(limit, 0.0) for limit, count in last.durations.items()}
        p95 = quantile(0.95, durations)
        return LoadReply(
            window_s=round(seconds, 1) if seconds else None,
            requests_per_s=round(requests / seconds, 2) if seconds else None,
            p95_ms=None if p95 is None else round(p95 * 1000, 1),
            requests_in_progress=int(total(self._metrics.requests_in_progress)),
            queue_rows=int(total(self._metrics.queue_jobs)),
            queue_tokens=int(total(self._metrics.queue_tokens)),
            queue_wait_ms=round(total(self._metrics.queue_predicted_wait) * 1000, 1),
            batch_rows=round((last.rows - first.rows) / batches, 2) if batches else None,
            batch_tokens=round((last.tokens - first.tokens) / batches, 1) if batches else None,
        )

    def routes(self) -> list[PlainRoute]:
        return [PlainRoute(PATH, self.load)]
