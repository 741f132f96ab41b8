"""The pool: all replicas, one per device, started together, supervised, stopped together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import chain, islice, repeat

from service.checkpoints.checkpoint import Checkpoint
from service.host import OomKills
from service.metric_labels import ReplicaState
from service.metrics import Metrics
from service.replicas.canary import ReferenceAnswers
from service.replicas.process import Launched
from service.replicas.protocol import Spec
from service.replicas.replica import Feed, OnProfile, OnProgress, Replica, RestartPolicy
from service.replicas.runner import Load, load_engine


def keep_default_logs() -> None:
    """The default: a worker process logs warnings and errors to stderr."""


class Pool:
    """One worker process per entry of `devices`, each with an engine per checkpoint.

    `load` and `set_up_logs` are called in the worker processes: they must be module functions, or partials of such.
    `on_wrong_answer` is called when a canary shows that a device computes wrong numbers, or weights were damaged.
    `workers` are processes that were launched ahead, for the first replicas.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        devices: Sequence[str],
        *,
        metrics: Metrics,
        policy: RestartPolicy,
        precision: str = "auto",
        load: Load = load_engine,
        set_up_logs: Callable[[], None] = keep_default_logs,
        on_progress: OnProgress = lambda replica, loading: None,
        on_profile: OnProfile = lambda replica, model, steps, fitting_tokens: None,
        on_wrong_answer: Callable[[], None] = lambda: None,
        workers: Sequence[Launched] = (),
    ) -> None:
        self._policy = policy
        self._on_wrong_answer = on_wrong_answer
        self._reference_answers, oom_kills = ReferenceAnswers(), OomKills()
        launched = islice(chain(workers, repeat(None)), len(devices))
        self._replicas = [
            Replica(
                name,
                Spec(tuple(checkpoints), device, precision, load, set_up_logs, policy.canary_interval_s),
                policy,
                metrics,
                reference_answers=self._reference_answers,
                oom_kills=oom_kills,
                on_progress=on_progress,
                on_profile=on_profile,
                on_wrong_answer=on_wrong_answer,
                on_damage=self._on_damage,
                worker=worker,
            )
            for name, device, worker in zip(replica_names(devices), devices, launched, strict=True)
        ]
        self._keepers: list[asyncio.Task[None]] = []

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(replica.name for replica in self._replicas)

    async def start(self, feed: Feed) -> None:
        """Returns when every replica is ready. Raises the first StartupError (CheckpointError ...), with no process
        left."""
        loop = asyncio.get_running_loop()
        started = [loop.create_future() for _ in self._replicas]
        self._keepers = [
            asyncio.create_task(replica.keep(feed, future), name=f"replica {replica.name}")
            for replica, future in zip(self._replicas, started, strict=True)
        ]
        try:
            await asyncio.gather(*started)
        except BaseException:  # a start that fails or is cancelled must leave no process behind
            await self.stop()
            raise

    def _on_damage(self, finder: str) -> None:
        """A replica has found the cached weights damaged: earlier answers may be wrong, and so may other replicas."""
        self._reference_answers.forget()
        self._on_wrong_answer()
        for replica in self._replicas:
            if replica.name != finder:
                replica.check_weights()

    def is_ready(self) -> bool:
        """Whether at least one replica is ready."""
        return self.num_ready() > 0

    def num_ready(self) -> int:
        """Number of replicas that are ready."""
        return [replica.state for replica in self._replicas].count("ready")

    def why_not_alive(self) -> str | None:
        """A reason when every replica keeps crashing, so that restarting the whole service may help; else None."""
        if ended := [keeper.get_name() for keeper in self._keepers if keeper.done()]:
            return f"supervision has ended ({', '.join(ended)})"
        limit = self._policy.max_crashes
        if any(replica.num_failures < limit or replica.is_steady for replica in self._replicas):
            return None
        losses = ", ".join(f"{each.name}: {each.num_failures}, last {each.last_loss}" for each in self._replicas)
        return f"every replica was lost {limit} times or more in a row ({losses})"

    def states(self) -> dict[str, ReplicaState]:
        return {replica.name: replica.state for replica in self._replicas}

    def precisions(self, model: str) -> list[str]:
        """The precision of this model: one, or several where the replicas differ; empty until it is loaded."""
        return sorted({replica.precisions[model] for replica in self._replicas if model in replica.precisions})

    def left_out(self) -> dict[str, list[str]]:
        """By replica, the kernels that failed its self-test, as "model: kind name"."""
        return {
            replica.name: [
                f"{model}: {each.kind} {each.name}" for model, checks in replica.left_out.items() for each in checks
            ]
            for replica in self._replicas
        }

    def pids(self) -> dict[str, int]:
        """Process ids of the running worker processes, by replica."""
        return {replica.name: replica.pid for replica in self._replicas if replica.pid is not None}

    async def stop(self) -> None:
        """Stops every worker process; each may finish its batch within the policy's grace period."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._keepers = []


def replica_names(devices: Sequence[str]) -> list[str]:
    """A replica is named after its device; the second one on a device is `cpu#2`."""
    seen: dict[str, int] = {}
    out = []
    for device in devices:
        seen[device] = seen.get(device, 0) + 1
        out.append(device if seen[device] == 1 else f"{device}#{seen[device]}")
    return out
