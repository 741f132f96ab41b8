"""All replicas, one per device: started together, looked after, stopped together.

Knows no queue and no HTTP: `start` is given what feeds a replica, and calls it for every replica that becomes ready.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from service.batching.batch import Feed
from service.checkpoints.checkpoint import Checkpoint
from service.domain import Step
from service.host import OomKills
from service.metric_labels import ReplicaState
from service.metrics import Metrics
from service.replicas.canary import ReferenceAnswers
from service.replicas.protocol import Loading, Spec
from service.replicas.replica import Predict, Profiled, Progress, Replica, RestartPolicy
from service.replicas.runner import Load, load_engine


def ignore_progress(replica: str, loading: Loading) -> None:
    """The default: loading is not shown."""


def ignore_profile(replica: str, model: str, steps: Sequence[Step], fitting_tokens: int | None) -> None:
    """The default: nobody asks how fast a replica is."""


def predict_nothing(model: str, tokens: int, rows: int) -> float | None:
    """The default: nobody knows how long a batch takes."""
    return None


def keep_logs_as_they_are() -> None:
    """The default: a child logs warnings and errors to stderr, as Python does unasked."""


class Pool:
    """One child process per entry of `devices`, each holding an engine per checkpoint.

    `load` and `set_up_logs` are called in the children, so they have to be functions of modules (or partials of such).
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
        set_up_logs: Callable[[], None] = keep_logs_as_they_are,
        progress: Progress = ignore_progress,
        profiled: Profiled = ignore_profile,
        predict: Predict = predict_nothing,
    ) -> None:
        self._policy = policy
        known, oom_kills = ReferenceAnswers(), OomKills()
        self._replicas = [
            Replica(
                name,
                Spec(tuple(checkpoints), device, precision, load, set_up_logs, policy.canary_interval_s),
                policy,
                metrics,
                known=known,
                oom_kills=oom_kills,
                progress=progress,
                profiled=profiled,
                predict=predict,
            )
            for name, device in zip(names(devices), devices, strict=True)
        ]
        self._keepers: list[asyncio.Task[None]] = []

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(replica.name for replica in self._replicas)

    async def start(self, feed: Feed) -> None:
        """Returns when every replica is ready; raises the first StartupError (CheckpointError ...), no child left."""
        loop = asyncio.get_running_loop()
        started = [loop.create_future() for _ in self._replicas]
        self._keepers = [
            asyncio.create_task(replica.keep(feed, future), name=f"replica {replica.name}")
            for replica, future in zip(self._replicas, started, strict=True)
        ]
        try:
            await asyncio.gather(*started)
        except BaseException:  # whatever ends the start, a cancellation too, must leave no child behind
            await self.stop()
            raise

    def is_ready(self) -> bool:
        """Whether at least one replica computes."""
        return self.num_ready() > 0

    def num_ready(self) -> int:
        """How many replicas compute."""
        return [replica.state for replica in self._replicas].count("ready")

    def why_not_alive(self) -> str | None:
        """Told when no replica comes back for good, and starting the whole service anew may help; else None."""
        limit = self._policy.max_crashes
        if any(replica.num_failures < limit or replica.is_steady for replica in self._replicas):
            return None
        losses = ", ".join(f"{each.name}: {each.num_failures}, last {each.last_loss}" for each in self._replicas)
        return f"every replica was lost {limit} times or more in a row ({losses})"

    def states(self) -> dict[str, ReplicaState]:
        return {replica.name: replica.state for replica in self._replicas}

    def precisions(self, model: str) -> list[str]:
        """What the replicas compute this model in: one, or several where they differ; empty until it is loaded."""
        return sorted({replica.precisions[model] for replica in self._replicas if model in replica.precisions})

    def pids(self) -> dict[str, int]:
        """Of the children that are alive."""
        return {replica.name: replica.pid for replica in self._replicas if replica.pid is not None}

    async def stop(self) -> None:
        """Ends every child: each may finish its batch, within the grace of its care."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._keepers = []


def names(devices: Sequence[str]) -> list[str]:
    """A replica is named after its device; the second on one device is `cpu#2`."""
    seen: dict[str, int] = {}
    out = []
    for device in devices:
        seen[device] = seen.get(device, 0) + 1
        out.append(device if seen[device] == 1 else f"{device}#{seen[device]}")
    return out
