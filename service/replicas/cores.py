"""How many cores this process really has: what the container's quota and the affinity mask leave of the machine.

`os.cpu_count()` counts the machine. Threads above the quota are not slower threads: the kernel stops all of them
for the rest of each period.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def num_cores(root: Path = Path("/"), num_allowed: int | None = None) -> int:
    """At least 1; a quota of 2.5 cores counts as 2. `num_allowed` is the size of the affinity mask."""
    allowed = len(os.sched_getaffinity(0)) if num_allowed is None else num_allowed
    return max(1, int(min([allowed, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """The limits of this process's control group and of every group above it, in cores."""
    for controllers, path in _memberships(root / "proc/self/cgroup"):
        mounts = root / "sys/fs/cgroup"
        for mount in [mounts / name for name in ("cpu,cpuacct", "cpuacct,cpu", "cpu")] if controllers else [mounts]:
            for group in (path, *path.parents):
                folder = mount / group.relative_to("/")
                quota = _quota_v1(folder) if controllers else _quota_v2(folder)
                if quota is not None:
                    yield quota


def _memberships(file: Path) -> Iterator[tuple[str, PurePosixPath]]:
    """(controllers, group) of version 1's cpu hierarchy, and of version 2, where controllers is empty."""
    for line in _read(file).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            yield controllers, PurePosixPath(path)


def _quota_v2(folder: Path) -> float | None:
    match _read(folder / "cpu.max").split():
        case [quota, period] if quota != "max":
            return int(quota) / int(period)
    return None


def _quota_v1(folder: Path) -> float | None:
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    if not quota or not period or int(quota) <= 0:
        return None
    return int(quota) / int(period)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
