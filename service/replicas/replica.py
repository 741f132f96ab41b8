"""One replica: a worker process on one device that is started, fed, and replaced when it exits."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from service.batching.batch import Replica as BatchRunner
from service.domain import Check, Step
from service.errors import StartupError
from service.host import OomKills
from service.metric_labels import LossReason, ReplicaState
from service.metrics import Metrics
from service.replicas.canary import ReferenceAnswers, WrongAnswer
from service.replicas.process import Launched, WorkerProcess
from service.replicas.protocol import Checked, Damaged, Loading, Profile, Ready, Spec

logger = logging.getLogger(__name__)

NUM_FEEDERS = 2
"""One batch computes while the next waits in the pipe."""

STEADY_S = 60.0
"""A worker process that has served for so long did not fail because of how it was started."""

SUSPECT_LOSSES: tuple[LossReason, ...] = ("wrong", "crash", "exit", "start")
"""Losses that damaged weights may have caused: the next process checks all of them before it uses them."""

SLOW_STARTS: tuple[LossReason, ...] = ("wrong", "crash")
"""After such a loss weights may have to be converted again, so the next start may take as long as the first."""

Feed = Callable[[BatchRunner], Coroutine[Any, Any, None]]
"""Takes batches for a replica until the replica is lost or there are no more."""

OnProgress = Callable[[str, Loading], None]
"""Called with the name of the replica and how much of a model it has loaded."""

OnProfile = Callable[[str, str, Sequence[Step], int | None], None]
"""Called each time a replica has measured a model, soon after it became ready: with the name of the replica, the model,
the steps, and the tokens that fit into its memory where it ran out of that."""


def back_off_s(num_failures: int) -> float:
    """0 after the first loss, then 1, 2, 4 ... 30 seconds."""
    return 0.0 if num_failures <= 1 else min(30.0, 2.0 ** (num_failures - 2))


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How long to wait for a replica, and when to give up. `threads` are the CPU threads of one replica.

    The first start may take `start_timeout_s`, a later one `restart_factor` times the longest so far. A batch may take
    `hang_factor` times its predicted time. `max_crashes` losses of every replica in a row make the service unhealthy.
    The lower bounds allow for what happens once: a kernel is compiled, a disk is busy.
    """

    threads: int
    start_timeout_s: float = 900.0
    restart_factor: float = 5.0
    min_restart_timeout_s: float = 30.0
    hang_timeout_s: float = 120.0
    hang_factor: float = 20.0
    min_batch_timeout_s: float = 10.0
    stop_grace_s: float = 5.0
    max_crashes: int = 6
    canary_interval_s: float = 60.0
    back_off_s: Callable[[int], float] = back_off_s
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic

    def load_timeout_s(self, longest_s: float | None) -> float:
        """Seconds that a start may take; `longest_s` is the longest start so far, None before the first."""
        if longest_s is None:
            return self.start_timeout_s
        return min(self.start_timeout_s, max(self.min_restart_timeout_s, self.restart_factor * longest_s))

    def batch_timeout_s(self, expected_s: float | None) -> float:
        """Seconds that a batch may take whose predicted time is `expected_s`, None where there is no prediction."""
        if expected_s is None:
            return self.hang_timeout_s
        return min(self.hang_timeout_s, max(self.min_batch_timeout_s, self.hang_factor * expected_s))


class Replica:
    """Keeps a worker process running, one after the other.

    `state`, `pid`, `precisions` and `left_out` (by model name, empty until loaded) and `last_loss` describe the current
    one.
    `num_failures` counts losses in a row; a process that served steadily resets it.
    """

    def __init__(
        self,
        name: str,
        spec: Spec,
        policy: RestartPolicy,
        metrics: Metrics,
        *,
        reference_answers: ReferenceAnswers,
        oom_kills: OomKills,
        on_progress: OnProgress,
        on_profile: OnProfile,
        on_wrong_answer: Callable[[], None],
        on_damage: Callable[[str], None],
        worker: Launched | None = None,
    ) -> None:
        self.name = name
        self.state: ReplicaState = "stopped"
        self.pid: int | None = None
        self.precisions: dict[str, str] = {}
        self.left_out: Mapping[str, tuple[Check, ...]] = {}
        self.last_loss: LossReason | None = None
        self.num_failures = 0
        self._served_since: float | None = None
        self._longest_start_s: float | None = None
        self._spec = spec
        self._policy = policy
        self._metrics = metrics
        self._reference_answers = reference_answers
        self._oom_kills = oom_kills
        self._on_progress = on_progress
        self._on_profile = on_profile
        self._on_wrong_answer = on_wrong_answer
        self._on_damage = on_damage
        self._launched = worker
        self._process: WorkerProcess | None = None

    @property
    def is_steady(self) -> bool:
        """Whether its process has served for so long that its start was not at fault."""
        return self._served_since is not None and self._policy.clock() - self._served_since >= STEADY_S

    def check_weights(self) -> None:
        """Has the process check the cached weights that it uses; it exits if they are damaged."""
        if self._process and self.state == "ready":
            self._process.check_weights()

    async def keep(self, feed: Feed, started: asyncio.Future[None]) -> None:
        """Runs one process after another until cancelled. `started` gets the first one's success or StartupError."""
        try:
            while True:
                try:
                    await self._run_process(feed, started)
                except StartupError:
                    raise  # of the first start only
                except Exception:  # the outermost handler: supervision must go on, whatever fails in it
                    logger.exception("replica supervision failed", extra={"replica": self.name})
                    if not started.done():
                        raise
                    self._on_loss("start")
                self.num_failures = 1 if self.is_steady else self.num_failures + 1
                self._served_since = None
                self._set_state("restarting")
                self._metrics.replica_restarted(self.name)
                await self._policy.sleep(self._policy.back_off_s(self.num_failures))
        except Exception as error:  # noqa: BLE001 - the caller of `start` gets it
            if not started.done():
                started.set_exception(error)
        finally:
            started.cancel()  # no start will follow that could set it
            self._set_state("stopped")

    async def _run_process(self, feed: Feed, started: asyncio.Future[None]) -> None:
        """Runs one process until it is lost. Raises StartupError if the first one cannot start."""
        launched, self._launched = self._launched, None
        # A process that was launched ahead has imported meanwhile; the next one will have to. It may also have waited,
        # for a download.
        ahead_s = min(launched.age_s, self._policy.min_restart_timeout_s) if launched else 0.0
        self._process = process = WorkerProcess(
            self.name,
            replace(self._spec, are_weights_suspect=self.last_loss in SUSPECT_LOSSES),
            threads=self._policy.threads,
            batch_timeout_s=self._policy.batch_timeout_s,
            on_message=self._on_message,
            oom_kills=self._oom_kills,
            launched=launched,
        )
        self._set_state("starting")
        try:
            await process.start()
            self.pid = process.pid
            self._on_ready(await self._wait_until_ready(process, ahead_s))
            if not started.done():
                started.set_result(None)
            await self._serve(process, feed)
        except StartupError as error:
            if not started.done():
                raise
            logger.error("replica could not start again", extra={"replica": self.name, "detail": error.detail})
            self._on_loss(_reason_of_failed_start(process, error))
        finally:
            self.pid = None
            await process.stop(self._policy.stop_grace_s)

    async def _wait_until_ready(self, process: WorkerProcess, ahead_s: float) -> Ready:
        since = self._policy.clock()
        longest_s = None if self.last_loss in SLOW_STARTS else self._longest_start_s
        ready = await process.ready(self._policy.load_timeout_s(longest_s))
        self._longest_start_s = max(self._policy.clock() - since + ahead_s, self._longest_start_s or 0.0)
        if ready.has_found_damage:
            self._on_damage(self.name)
        self._reference_answers.compare(self.name, ready.precisions, ready.answers)
        return ready

    async def _serve(self, process: WorkerProcess, feed: Feed) -> None:
        """Feeds the process until it exits."""
        feeders = [asyncio.create_task(feed(process)) for _ in range(NUM_FEEDERS)]
        for feeder in feeders:
            feeder.add_done_callback(partial(_kill_if_failed, process))
            process.on_exit(feeder.cancel)  # it gives its batch back, and must not take it again
        try:
            status = await process.wait()
            reason = process.loss or "exit"
            self._set_state("restarting")
            extra = {"replica": self.name, "pid": process.pid, "status": status, "reason": reason}
            logger.error("replica lost", extra=extra)
            self._on_loss(reason)
        finally:
            for feeder in feeders:
                feeder.cancel()
            await asyncio.gather(*feeders, return_exceptions=True)

    # messages of the process

    def _on_message(self, message: Loading | Profile | Checked | Damaged) -> None:
        match message:
            case Loading():
                if self.state == "starting":
                    self._set_state("loading")
                self._on_progress(self.name, message)
            case Profile(model, steps, fitting_tokens):
                self._on_profile(self.name, model, steps, fitting_tokens)
            case Checked(wrong, memory):
                if wrong:
                    self._on_wrong_answer()
                self._metrics.canary_ran(self.name, "wrong" if wrong else "ok")
                self._metrics.device_memory(self.name, memory)
            case Damaged():
                self._on_damage(self.name)

    def _on_ready(self, ready: Ready) -> None:
        self.precisions = ready.precisions
        self.left_out = ready.left_out
        self._served_since = self._policy.clock()
        self._set_state("ready")
        self._metrics.replica_holds(
            self.name, device=self._spec.device, precisions=ready.precisions, memory_bytes=ready.memory_bytes
        )
        self._metrics.device_memory(self.name, ready.device_memory)
        for model, checks in ready.left_out.items():
            self._metrics.kernels_are_left_out(self.name, model, [check.kind for check in checks])
        extra = {"replica": self.name, "pid": self.pid, "memory_bytes": ready.memory_bytes, **ready.precisions}
        logger.info("replica ready", extra=extra)

    def _on_loss(self, reason: LossReason) -> None:
        self.last_loss = reason
        self._metrics.replica_lost(self.name, reason)

    def _set_state(self, state: ReplicaState) -> None:
        self.state = state
        self._metrics.replica_is(self.name, state)


def _reason_of_failed_start(process: WorkerProcess, error: StartupError) -> LossReason:
    if isinstance(error, WrongAnswer):
        return "wrong"
    return "oom" if process.loss == "oom" else "start"


def _kill_if_failed(process: WorkerProcess, feeder: asyncio.Task[None]) -> None:
    """A feeder never raises. If one does, its replica would look ready and compute nothing: replace it."""
    if not feeder.cancelled() and (error := feeder.exception()):
        logger.critical("feeder failed", exc_info=error)
        process.kill()
