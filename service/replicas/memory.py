"""The memory of this process and what there is for it, and how often the kernel had to kill somebody for want of it.

Knows no torch and no GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from service.domain import Memory
from service.replicas.cgroup import cgroups, number_of, read_text

UNLIMITED = 1 << 60
"""Above this a limit is version 1's way to say that there is none."""


def process_memory(root: Path = Path("/")) -> Memory:
    """What this process holds, of what its control group or else the machine allows all of its processes."""
    held = int(read_text(root / "proc/self/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    machine = (number_of(read_text(root / "proc/meminfo"), "MemTotal:") or 0) * 1024
    return Memory(allocated=held, total=min([machine, *_memory_limits(root)]))


class OomKills:
    """The kernel's out-of-memory kills of which it is not known yet whom they hit; shared by all that may be."""

    def __init__(self, count: Callable[[], int] | None = None) -> None:
        self._count = count or oom_kills
        self._num_known = self._count()

    def take(self) -> bool:
        """Whether there is one; then it is known now."""
        has_one = self._count() > self._num_known
        self._num_known += has_one
        return has_one


def oom_kills(root: Path = Path("/")) -> int:
    """How many processes the kernel's out-of-memory killer has ended: in this control group, or else on the machine."""
    for group in cgroups("memory", root):
        count = number_of(group.read("memory.oom_control" if group.is_v1 else "memory.events"), "oom_kill")
        if count is not None:
            return count
    return number_of(read_text(root / "proc/vmstat"), "oom_kill") or 0


def _memory_limits(root: Path) -> Iterator[int]:
    for group in cgroups("memory", root):
        limit = group.read("memory.limit_in_bytes" if group.is_v1 else "memory.max").strip()
        if limit.isdecimal() and int(limit) < UNLIMITED:
            yield int(limit)
