"""One replica: a child process on one device that is started, fed, and replaced when it ends.

Knows no queue: it hands the child's `run` to a `feed`. Its state and its losses are told to the metrics.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from service.batching.batch import BatchResult, Feed, Run
from service.domain import Encoding, Step
from service.errors import StartupError
from service.host import OomKills
from service.metric_labels import LossReason, ReplicaState
from service.metrics import Metrics
from service.replicas.canary import ReferenceAnswers, WrongAnswer
from service.replicas.process import Process
from service.replicas.protocol import Checked, Loading, Profile, Ready, Spec
from service.tracing import trace

STEADY_S = 60.0
"""A child that has served for so long did not fail because of how it was started."""


def back_off_s(num_failures: int) -> float:
    """At once after the first loss, then 1, 2, 4 ... 30 seconds."""
    return 0.0 if num_failures <= 1 else min(30.0, 2.0 ** (num_failures - 2))


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """All in seconds, but four: `threads` are of one replica, a start may take `restart_factor` times as long as one
    before, a batch `hang_factor` times as long as is predicted, and `max_crashes` losses of every replica in a row are
    too many. The least of both waits is for what happens once: a kernel that is compiled, a disk that is busy."""

    threads: int
    start_timeout_s: float = 900.0
    restart_factor: float = 5.0
    least_restart_s: float = 30.0
    hang_timeout_s: float = 120.0
    hang_factor: float = 20.0
    least_patience_s: float = 10.0
    stop_grace_s: float = 5.0
    max_crashes: int = 6
    canary_interval_s: float = 60.0
    back_off_s: Callable[[int], float] = back_off_s
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic

    def start_patience_s(self, longest_s: float | None) -> float:
        """Seconds that a start may take; `longest_s` is what the longest one so far took, None before the first."""
        if longest_s is None:
            return self.start_timeout_s
        return min(self.start_timeout_s, max(self.least_restart_s, self.restart_factor * longest_s))

    def patience_s(self, predicted_s: float | None) -> float:
        """Seconds that a batch may take which is expected to take so many, if anybody knows."""
        if predicted_s is None:
            return self.hang_timeout_s
        return min(self.hang_timeout_s, max(self.least_patience_s, self.hang_factor * predicted_s))


logger = logging.getLogger(__name__)

NUM_FEEDERS = 2
"""One batch computes while the next waits in the pipe."""

Progress = Callable[[str, Loading], None]
"""Told the replica's name and how far its loading is."""

Profiled = Callable[[str, str, Sequence[Step], int | None], None]
"""Told the replica's name, a model, what it measured of that soon after it has become ready, each time, and how many
tokens fit into its memory, where it met the end of that."""

Predict = Callable[[str, int, int], float | None]
"""Seconds that so many tokens in so many rows of a model take; None where nobody knows."""


class Replica:
    """`keep` is its life; `state`, `pid`, `precisions` (by model name, empty until loaded) and `last_loss` tell of it.

    `num_failures` are in a row: those before a child served steadily do not count.
    """

    def __init__(
        self,
        name: str,
        spec: Spec,
        policy: RestartPolicy,
        metrics: Metrics,
        *,
        known: ReferenceAnswers,
        oom_kills: OomKills,
        progress: Progress,
        profiled: Profiled,
        predict: Predict,
    ) -> None:
        self.name = name
        self.state: ReplicaState = "stopped"
        self.pid: int | None = None
        self.precisions: dict[str, str] = {}
        self.last_loss: LossReason | None = None
        self.num_failures = 0
        self._served_since: float | None = None
        self._longest_start_s: float | None = None
        self._spec = spec
        self._policy = policy
        self._metrics = metrics
        self._known = known
        self._oom_kills = oom_kills
        self._progress = progress
        self._profiled = profiled
        self._predict = predict

    @property
    def is_steady(self) -> bool:
        """Whether its child has served for so long that it will not fail because of how it was started."""
        return self._served_since is not None and self._policy.clock() - self._served_since >= STEADY_S

    async def keep(self, feed: Feed, started: asyncio.Future[None]) -> None:
        """One child after another until cancelled. `started` gets the first one's success or StartupError."""
        trace.replica.set(self.name)
        try:
            while True:
                await self._live(feed, started)
                self.num_failures = 1 if self.is_steady else self.num_failures + 1
                self._served_since = None
                self._become("restarting")
                self._metrics.replica_restarts.labels(self.name).inc()
                await self._policy.sleep(self._policy.back_off_s(self.num_failures))
        except StartupError as error:
            if not started.done():
                started.set_exception(error)
        finally:
            started.cancel()  # nobody may wait for a start that will not be
            self._become("stopped")

    async def _live(self, feed: Feed, started: asyncio.Future[None]) -> None:
        """One child's life, until it is lost. Raises StartupError if the first one cannot start."""
        process = Process(
            self._spec,
            threads=self._policy.threads,
            patience=self._patience_s,
            told=self._on_message,
            oom_kills=self._oom_kills,
        )
        self._become("starting")
        try:
            await process.start()
            self.pid = process.pid
            self._on_ready(await self._ready(process))
            if not started.done():
                started.set_result(None)
            await self._serve(process, feed)
        except StartupError as error:
            if not started.done():
                raise
            logger.error("replica could not start again", extra={"replica": self.name, "detail": error.detail})
            self._on_loss(_reason_of_start(process, error))
        finally:
            self.pid = None
            await process.stop(self._policy.stop_grace_s)

    async def _ready(self, process: Process) -> Ready:
        since, patience_s = self._policy.clock(), self._policy.start_patience_s(self._longest_start_s)
        try:
            async with asyncio.timeout(patience_s):
                ready = await process.ready()
        except TimeoutError:
            process.kill()
            raise StartupError(f"{self._spec.device}: not ready after {patience_s:g} s") from None
        self._longest_start_s = max(self._policy.clock() - since, self._longest_start_s or 0.0)
        self._known.compare(self.name, ready.precisions, ready.answers)
        return ready

    async def _serve(self, process: Process, feed: Feed) -> None:
        """Feeds the child until it ends."""
        run = self._counted(process.run)
        feeders = [asyncio.create_task(feed(run)) for _ in range(NUM_FEEDERS)]
        for feeder in feeders:
            feeder.add_done_callback(partial(_check, process))
            process.on_end(feeder.cancel)  # it gives its batch back, and must not take it again
        try:
            status = await process.ended()
            reason = process.loss or "exit"
            self._become("restarting")
            extra = {"replica": self.name, "pid": process.pid, "status": status, "reason": reason}
            logger.error("replica lost", extra=extra)
            self._on_loss(reason)
        finally:
            for feeder in feeders:
                feeder.cancel()
            await asyncio.gather(*feeders, return_exceptions=True)

    def _counted(self, run: Run) -> Run:
        busy = self._metrics.replica_busy.labels(self.name)

        async def counted(encodings: Sequence[Encoding]) -> BatchResult:
            ran = await run(encodings)
            busy.inc(ran.compute_s)
            return ran

        return counted

    def _patience_s(self, encodings: Sequence[Encoding]) -> float:
        tokens = sum(encoding.num_tokens for encoding in encodings)
        return self._policy.patience_s(self._predict(encodings[0].model, tokens, len(encodings)))

    # what the child says

    def _on_message(self, message: Loading | Profile | Checked) -> None:
        match message:
            case Loading():
                if self.state == "starting":
                    self._become("loading")
                self._progress(self.name, message)
            case Profile(model, steps, fitting_tokens):
                self._profiled(self.name, model, steps, fitting_tokens)
            case Checked(wrong, memory):
                self._metrics.canary_ran(self.name, "wrong" if wrong else "ok")
                self._metrics.device_memory(self.name, memory)

    def _on_ready(self, ready: Ready) -> None:
        self.precisions = ready.precisions
        self._served_since = self._policy.clock()
        self._become("ready")
        self._metrics.replica_holds(
            self.name, device=self._spec.device, precisions=ready.precisions, memory_bytes=ready.memory_bytes
        )
        self._metrics.device_memory(self.name, ready.device_memory)
        extra = {"replica": self.name, "pid": self.pid, "memory_bytes": ready.memory_bytes, **ready.precisions}
        logger.info("replica ready", extra=extra)

    def _on_loss(self, reason: LossReason) -> None:
        self.last_loss = reason
        self._metrics.replica_losses.labels(self.name, reason).inc()

    def _become(self, state: ReplicaState) -> None:
        self.state = state
        self._metrics.replica_is(self.name, state)


def _reason_of_start(process: Process, error: StartupError) -> LossReason:
    if isinstance(error, WrongAnswer):
        return "wrong"
    return "oom" if process.loss == "oom" else "start"


def _check(process: Process, feeder: asyncio.Task[None]) -> None:
    """A feeder never raises. If one does, a replica without it would look ready and do nothing."""
    if not feeder.cancelled() and (error := feeder.exception()):
        logger.critical("feeder failed", exc_info=error)
        process.kill()
