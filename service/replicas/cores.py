"""How many cores this process really has: what the container's quota and the affinity mask leave of the machine.

`os.cpu_count()` counts the machine. Threads above the quota are not slower threads: the kernel stops all of them
for the rest of each period.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from service.replicas.cgroup import Cgroup, cgroups


def num_cores(root: Path = Path("/"), num_allowed: int | None = None) -> int:
    """At least 1; a quota of 2.5 cores counts as 2. `num_allowed` is the size of the affinity mask."""
    allowed = len(os.sched_getaffinity(0)) if num_allowed is None else num_allowed
    return max(1, int(min([allowed, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """The limits of this process's control group and of every group above it, in cores."""
    for group in cgroups("cpu", root):
        quota = _quota_v1(group) if group.is_v1 else _quota_v2(group)
        if quota is not None:
            yield quota


def _quota_v2(group: Cgroup) -> float | None:
    match group.read("cpu.max").split():
        case [quota, period] if quota != "max":
            return int(quota) / int(period)
    return None


def _quota_v1(group: Cgroup) -> float | None:
    quota, period = group.read("cpu.cfs_quota_us"), group.read("cpu.cfs_period_us")
    if not quota or not period or int(quota) <= 0:
        return None
    return int(quota) / int(period)
