"""A memory cgroup, version 1 or 2, for a server and its children: the kernel's OOM killer acts in it alone."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
END_S = 10.0
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """Processes that are added stay in it with their children."""

    folder: Path
    is_v1: bool

    def add(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(str(pid))

    def allow(self, num_bytes: int) -> None:
        """Limits the group to what it uses now and `num_bytes` more."""
        taken = int((self.folder / ("memory.usage_in_bytes" if self.is_v1 else "memory.current")).read_text())
        self._limit(str(taken + num_bytes))

    def lift(self) -> None:
        self._limit("-1" if self.is_v1 else "max")

    def _limit(self, value: str) -> None:
        (self.folder / ("memory.limit_in_bytes" if self.is_v1 else "memory.max")).write_text(value)


@contextmanager
def memory_group() -> Iterator[MemoryGroup | None]:
    """None without root or without the memory controller. At its end every process in it has exited."""
    is_v1 = (ROOT / "memory").is_dir()
    group = MemoryGroup((ROOT / "memory" if is_v1 else ROOT) / f"erlangshen-faults-{os.getpid()}", is_v1)
    control = ROOT / "cgroup.subtree_control"
    is_v2 = control.is_file() and "memory" in control.read_text().split()
    if not (is_v1 or is_v2) or not os.access(group.folder.parent, os.W_OK):
        yield None
        return
    group.folder.mkdir()
    try:
        yield group
    finally:
        _remove(group.folder)


def _remove(folder: Path) -> None:
    """The folder is busy until the last process in it has exited."""
    until = time.monotonic() + END_S
    while folder.exists():
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(POLL_S)
