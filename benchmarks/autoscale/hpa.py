"""The arithmetic of Kubernetes' HorizontalPodAutoscaler (autoscaling/v2), for metrics of pods with an average to reach.

Written from the documented algorithm: the ratio to the target and its tolerance, the largest answer of all metrics,
stabilisation windows, policies. Knows no pods and no clock: it is handed what they say, and when.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import fmean
from typing import Any

TOLERANCE = 0.1
SYNC_S = 15.0
"""How often the controller looks, unless a cluster is set up otherwise."""


@dataclass(frozen=True, slots=True)
class Policy:
    """At most so many pods, or percent of them, in a period."""

    is_percent: bool
    value: int
    period_s: float

    def step(self, pods: int) -> float:
        return pods * self.value / 100 if self.is_percent else self.value


@dataclass(frozen=True, slots=True)
class Rules:
    """Of one direction; of several policies the one that allows the most counts."""

    window_s: float
    policies: tuple[Policy, ...]


@dataclass(frozen=True, slots=True)
class Spec:
    min_pods: int
    max_pods: int
    targets: Mapping[str, float]
    up: Rules
    down: Rules

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Spec:
        """From a HorizontalPodAutoscaler as YAML holds it."""
        spec = manifest["spec"]
        pods = [metric["pods"] for metric in spec["metrics"]]
        return cls(
            min_pods=spec["minReplicas"],
            max_pods=spec["maxReplicas"],
            targets={one["metric"]["name"]: _quantity(one["target"]["averageValue"]) for one in pods},
            up=_rules(spec["behavior"]["scaleUp"]),
            down=_rules(spec["behavior"]["scaleDown"]),
        )


def _quantity(text: str) -> float:
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def _rules(manifest: Mapping[str, Any]) -> Rules:
    assert manifest["selectPolicy"] == "Max"
    policies = [Policy(one["type"] == "Percent", one["value"], one["periodSeconds"]) for one in manifest["policies"]]
    return Rules(manifest["stabilizationWindowSeconds"], tuple(policies))


@dataclass(slots=True)
class Autoscaler:
    """Remembers what it recommended and what it changed, as long as its rules look back."""

    spec: Spec
    _recommended: list[tuple[float, int]] = field(default_factory=list)
    _changed: list[tuple[float, int]] = field(default_factory=list)

    def decide(self, now: float, pods: int, says: Mapping[str, Sequence[float]]) -> int:
        """How many pods there should be; `says` holds, by metric, the value of each pod."""
        wanted = max(wanted_for(pods, says[name], target) for name, target in self.spec.targets.items())
        wanted = self._stabilized(now, pods, wanted)
        wanted = self._limited(now, pods, wanted)
        wanted = min(max(wanted, self.spec.min_pods), self.spec.max_pods)
        if wanted != pods:
            self._changed.append((now, wanted - pods))
        return wanted

    def _stabilized(self, now: float, pods: int, wanted: int) -> int:
        """Up to the least that was wanted in one window, down to the most in the other."""
        self._recommended.append((now, wanted))
        least = min(_since(self._recommended, now - self.spec.up.window_s))
        most = max(_since(self._recommended, now - self.spec.down.window_s))
        return min(max(pods, least), most)

    def _limited(self, now: float, pods: int, wanted: int) -> int:
        if wanted > pods:
            return min(wanted, max(self._most(now, pods, policy) for policy in self.spec.up.policies))
        return max(wanted, min(self._least(now, pods, policy) for policy in self.spec.down.policies))

    def _most(self, now: float, pods: int, policy: Policy) -> int:
        before = self._before(now, pods, policy)
        return ceil(before + policy.step(before))

    def _least(self, now: float, pods: int, policy: Policy) -> int:
        before = self._before(now, pods, policy)
        return int(before - policy.step(before))

    def _before(self, now: float, pods: int, policy: Policy) -> int:
        """How many there were when the policy's period began."""
        return pods - sum(change for at, change in self._changed if at > now - policy.period_s)


def wanted_for(pods: int, values: Sequence[float], target: float) -> int:
    """The formula itself."""
    ratio = fmean(values) / target
    return pods if abs(ratio - 1) <= TOLERANCE else ceil(pods * ratio)


def _since(times: Iterable[tuple[float, int]], begin: float) -> list[int]:
    return [value for at, value in times if at >= begin]
