"""One replica: a child process on one device that is started, fed, and replaced when it ends.

Knows no queue: it hands the child's `run` to a `feed`. Its state is told to the metrics.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from service.batching.run import Feed
from service.domain import Step
from service.errors import StartupError
from service.metrics import Metrics, ReplicaState
from service.replicas.messages import Loading, Profile, Ready, Spec
from service.replicas.process import Process

logger = logging.getLogger(__name__)

NUM_FEEDERS = 2
"""One batch computes while the next waits in the pipe."""

STEADY_S = 60.0
"""A child that has served for so long did not fail because of how it was started."""

Progress = Callable[[str, Loading], None]
"""Told the replica's name and how far its loading is."""

Profiled = Callable[[str, Mapping[str, Sequence[Step]]], None]
"""Told the replica's name and what it measured, by model, soon after it has become ready, each time."""


def back_off_s(num_failures: int) -> float:
    """At once after the first loss, then 1, 2, 4 ... 30 seconds."""
    return 0.0 if num_failures <= 1 else min(30.0, 2.0 ** (num_failures - 2))


@dataclass(frozen=True, slots=True)
class Care:
    """How replicas are looked after; all in seconds. `threads` is per replica."""

    threads: int
    start_timeout_s: float = 900.0
    hang_timeout_s: float = 120.0
    stop_grace_s: float = 5.0
    back_off_s: Callable[[int], float] = back_off_s
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic


class Replica:
    """`keep` is its life; `state`, `pid` and `precisions` (by model name, empty until loaded) tell of it."""

    def __init__(
        self, name: str, spec: Spec, care: Care, metrics: Metrics, progress: Progress, profiled: Profiled
    ) -> None:
        self.name = name
        self.state: ReplicaState = "stopped"
        self.pid: int | None = None
        self.precisions: dict[str, str] = {}
        self._spec = spec
        self._care = care
        self._metrics = metrics
        self._progress = progress
        self._profiled = profiled

    async def keep(self, feed: Feed, started: asyncio.Future[None]) -> None:
        """One child after another until cancelled. `started` gets the first one's success or StartupError."""
        num_failures = 0
        try:
            while True:
                steady_s = await self._live(feed, started)
                num_failures = 1 if steady_s >= STEADY_S else num_failures + 1
                self._become("restarting")
                self._metrics.replica_restarts.labels(self.name).inc()
                await self._care.sleep(self._care.back_off_s(num_failures))
        except StartupError as error:
            if not started.done():
                started.set_exception(error)
        finally:
            started.cancel()  # nobody may wait for a start that will not be
            self._become("stopped")

    async def _live(self, feed: Feed, started: asyncio.Future[None]) -> float:
        """One child's life: the seconds that it served. Raises StartupError if the first one cannot start."""
        process = Process(
            self._spec,
            threads=self._care.threads,
            hang_timeout_s=self._care.hang_timeout_s,
            progress=self._on_progress,
            profiled=self._on_profile,
        )
        self._become("starting")
        try:
            await process.start()
            self.pid = process.pid
            self._on_ready(await self._ready(process))
            if not started.done():
                started.set_result(None)
            return await self._serve(process, feed)
        except StartupError as error:
            if not started.done():
                raise
            logger.error("replica could not start again", extra={"replica": self.name, "reason": error.detail})
            return 0.0
        finally:
            self.pid = None
            await process.stop(self._care.stop_grace_s)

    async def _ready(self, process: Process) -> Ready:
        try:
            async with asyncio.timeout(self._care.start_timeout_s):
                return await process.ready()
        except TimeoutError:
            process.kill()
            raise StartupError(f"{self._spec.device}: not ready after {self._care.start_timeout_s:g} s") from None

    async def _serve(self, process: Process, feed: Feed) -> float:
        """Feeds the child until it ends."""
        since = self._care.clock()
        feeders = [asyncio.create_task(feed(process.run)) for _ in range(NUM_FEEDERS)]
        for feeder in feeders:
            feeder.add_done_callback(partial(_check, process))
            process.on_end(feeder.cancel)  # it gives its batch back, and must not take it again
        try:
            status = await process.ended()
            self._become("restarting")
            logger.error("replica lost", extra={"replica": self.name, "pid": process.pid, "status": status})
        finally:
            for feeder in feeders:
                feeder.cancel()
            await asyncio.gather(*feeders, return_exceptions=True)
        return self._care.clock() - since

    def _on_progress(self, loading: Loading) -> None:
        if self.state == "starting":
            self._become("loading")
        self._progress(self.name, loading)

    def _on_profile(self, profile: Profile) -> None:
        self._profiled(self.name, {profile.model: profile.steps})

    def _on_ready(self, ready: Ready) -> None:
        self.precisions = ready.precisions
        self._become("ready")
        self._metrics.replica_holds(
            self.name, device=self._spec.device, precisions=ready.precisions, memory_bytes=ready.memory_bytes
        )
        extra = {"replica": self.name, "pid": self.pid, "memory_bytes": ready.memory_bytes, **ready.precisions}
        logger.info("replica ready", extra=extra)

    def _become(self, state: ReplicaState) -> None:
        self.state = state
        self._metrics.replica_is(self.name, state)


def _check(process: Process, feeder: asyncio.Task[None]) -> None:
    """A feeder never raises. If one does, a replica without it would look ready and do nothing."""
    if not feeder.cancelled() and (error := feeder.exception()):
        logger.critical("feeder failed", exc_info=error)
        process.kill()
