"""Replicas as real worker processes behind the batcher, with the fake engine of tests/fakes.py."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from service.batching.batcher import Batcher
from service.batching.jobs import RequestResult
from service.batching.latency_model import LatencyModels
from service.checkpoints.checkpoint import Checkpoint
from service.metric_labels import LOSS_REASONS, LossReason, ReplicaState
from service.metrics import Metrics
from service.replicas.pool import Pool
from service.replicas.process import Launched
from service.replicas.replica import OnProgress, RestartPolicy
from service.replicas.runner import Load
from tests.fakes import checkpoint, load_fake, row, value


def without_back_off(**policy: Any) -> RestartPolicy:
    """A policy that restarts lost replicas without a pause."""
    return RestartPolicy(threads=1, back_off_s=lambda num_failures: 0.0, **policy)


class RecordingMetrics(Metrics):
    """Metrics that record every state of a replica, and release `ready` for each time that one is ready."""

    def __init__(self) -> None:
        super().__init__(CollectorRegistry())
        self.states: list[ReplicaState] = []
        self.ready = asyncio.Semaphore(0)

    def replica_is(self, replica: str, state: ReplicaState) -> None:
        super().replica_is(replica, state)
        self.states.append(state)
        if state == "ready":
            self.ready.release()


@dataclass(frozen=True, slots=True)
class Service:
    batcher: Batcher
    pool: Pool
    metrics: RecordingMetrics

    async def submit(self, *ids: int) -> float:
        """Submits one request of one row; returns the sum."""
        return sum_of(await self.batcher.submit([row(*ids)]))

    async def submit_all(self, *ids: int) -> list[float | BaseException]:
        """Submits requests of one row, which share a batch; the second id keeps equal first ids from being merged."""
        requests = [self.submit(each, place) for place, each in enumerate(ids)]
        return await asyncio.gather(*requests, return_exceptions=True)

    @property
    def pid(self) -> int:
        return self.pool.pids()["cpu"]

    def losses(self) -> dict[LossReason, int]:
        """The losses of the first replica by reason; reasons without a loss are left out."""
        found = {each: value(self.metrics, "replica_losses_total", replica="cpu", reason=each) for each in LOSS_REASONS}
        return {reason: int(count) for reason, count in found.items() if count}


def sum_of(settled: RequestResult) -> float:
    return float(settled.outputs[0].scores[0, 0])


def compose(
    path: Path,
    *,
    devices: tuple[str, ...] = ("cpu",),
    policy: RestartPolicy | None = None,
    load: Load = load_fake,
    on_progress: OnProgress = lambda replica, loading: None,
    predict: Callable[[str, int, int], float] | None = None,
    max_batch_tokens: int = 0,
    max_queue_tokens: int = 10_000,
    model: Checkpoint | None = None,
    on_wrong_answer: Callable[[], None] = lambda: None,
    workers: Sequence[Launched] = (),
) -> Service:
    """`model` is for a `load` that needs a real checkpoint; its name is `m`."""
    os.mkfifo(path / "gate")
    metrics = RecordingMetrics()
    latency_models = LatencyModels(metrics=metrics, max_batch_tokens=max_batch_tokens)
    if predict:
        latency_models.predict = predict  # type: ignore[method-assign]
    batcher = Batcher(latency_models=latency_models, max_queue_tokens=max_queue_tokens, metrics=metrics)
    pool = Pool(
        [model or checkpoint(path)],
        devices,
        metrics=metrics,
        policy=policy or without_back_off(),
        load=load,
        on_progress=on_progress,
        on_profile=latency_models.calibrate,
        on_wrong_answer=on_wrong_answer,
        workers=workers,
    )
    metrics.declare(models=["m"], replicas=pool.names, tasks=["classify"])
    return Service(batcher, pool, metrics)


@asynccontextmanager
async def running(service: Service) -> AsyncIterator[Service]:
    await service.pool.start(service.batcher.feed)
    try:
        yield service
    finally:
        service.batcher.close()
        await service.pool.stop()
        assert service.pool.pids() == {}
