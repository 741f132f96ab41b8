"""A recorded load on as many pods as the autoscaler asks for: second by second, with pods that take time to start.

A pod computes `capacity` tokens a second; what it says of its utilisation at a given load is taken from the recording.
Load is split evenly, what cannot be computed waits, and above `max_wait_s` it is refused, as the service does.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from benchmarks.autoscale.hpa import SYNC_S, Autoscaler, Spec
from benchmarks.autoscale.recording import STEP_S, Step

UTILIZATION = "erlangshen_replica_utilization"
WAIT = "erlangshen_queue_predicted_wait_seconds"
NUM_BINS = 10
RATE_WINDOW_S = 60
"""What the adapter's rate() looks back."""


@dataclass(frozen=True, slots=True)
class Curve:
    """What a pod said of its utilisation, by its load: straight lines between the means of NUM_BINS spans of load."""

    capacity: float
    loads: tuple[float, ...]
    utilizations: tuple[float, ...]

    @classmethod
    def of(cls, steps: Sequence[Step]) -> Curve:
        """Capacity is what the busiest tenth of the steps would have computed, had they been busy all the time."""
        busiest = sorted(steps, key=lambda step: step.utilization)[-max(1, len(steps) // 10) :]
        capacity = median(step.tokens_per_s / step.utilization for step in busiest)
        bins: dict[int, list[Step]] = defaultdict(list)
        for step in steps:
            bins[int(NUM_BINS * step.tokens_per_s / capacity)].append(step)
        loads = [fmean(step.tokens_per_s for step in bins[index]) for index in sorted(bins)]
        utilizations = [fmean(step.utilization for step in bins[index]) for index in sorted(bins)]
        return cls(capacity, (0.0, *loads), (0.0, *utilizations))

    def at(self, tokens_per_s: float) -> float:
        return min(1.0, float(np.interp(tokens_per_s, self.loads, self.utilizations)))


@dataclass(frozen=True, slots=True)
class Second:
    load_pods: float
    """The load, in pods that it would keep busy all the time."""
    pods: int
    ready: int
    utilization: float
    wait_s: float
    refused_pods: float
    """What was refused in it, in the same unit as the load."""


@dataclass(slots=True)
class Fleet:
    """Pods, and what waits before them."""

    capacity: float
    start_s: float
    max_wait_s: float
    ready_at: list[float]
    backlog: float = 0.0

    def ready(self, now: float) -> int:
        return sum(at <= now for at in self.ready_at)

    def scale(self, now: float, pods: int) -> None:
        """The youngest go first, as a ReplicaSet has it."""
        self.ready_at = sorted(self.ready_at)[:pods] + [now + self.start_s] * (pods - len(self.ready_at))

    def second(self, now: float, tokens: float) -> tuple[float, float]:
        """(tokens computed by each ready pod, tokens refused)"""
        power = self.ready(now) * self.capacity
        waiting = self.backlog + tokens
        computed = min(waiting, power)
        self.backlog = min(waiting - computed, power * self.max_wait_s)
        return computed / self.ready(now), waiting - computed - self.backlog

    def wait_s(self, now: float) -> float:
        return self.backlog / (self.ready(now) * self.capacity)


def replay(
    steps: Sequence[Step], spec: Spec, *, times: float, stretch: int, start_s: float, max_wait_s: float = 30.0
) -> list[Second]:
    """`times` the recorded load, each step lasting `stretch` times as long as it did."""
    curve, scaler = Curve.of(steps), Autoscaler(spec)
    fleet = Fleet(curve.capacity, start_s, max_wait_s, [0.0] * spec.min_pods)
    recent: deque[float] = deque(maxlen=RATE_WINDOW_S)
    seconds = []
    for now in range(round(len(steps) * STEP_S * stretch)):
        tokens = times * steps[int(now / (STEP_S * stretch))].tokens_per_s
        per_pod, refused = fleet.second(now, tokens)
        recent.append(curve.at(per_pod) if fleet.backlog == 0 else 1.0)
        if now % SYNC_S == 0 and now:
            fleet.scale(now, scaler.decide(now, len(fleet.ready_at), _says(fleet, now, fmean(recent))))
        load, refused_pods = tokens / curve.capacity, refused / curve.capacity
        pods, ready = len(fleet.ready_at), fleet.ready(now)
        seconds.append(Second(load, pods, ready, recent[-1], fleet.wait_s(now), refused_pods))
    return seconds


def _says(fleet: Fleet, now: float, utilization: float) -> dict[str, list[float]]:
    """A pod that loads its models is scraped, too, and has nothing to do."""
    starting = [0.0] * (len(fleet.ready_at) - fleet.ready(now))
    return {
        UTILIZATION: [utilization] * fleet.ready(now) + starting,
        WAIT: [fleet.wait_s(now)] * fleet.ready(now) + starting,
    }
