"""This process's control groups, and what the kernel writes in them: limits and counts, in version 1 and version 2.

Knows not what the numbers are for. Whatever is not there reads as empty: many systems have no control groups.
"""

from __future__ import annotations

import ctypes
import ipaddress
import logging
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from service.domain import Memory


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A folder of the kernel's, that may not be there: a container does not see the path of its own group."""

    folder: Path
    is_v1: bool

    def read(self, name: str) -> str:
        return read_text(self.folder / name)


def cgroups(controller: str, root: Path = Path("/")) -> Iterator[Cgroup]:
    """This process's group and every group above it, of version 1's hierarchy with this controller and of version 2."""
    mounts = root / "sys/fs/cgroup"
    for controllers, path in _memberships(root / "proc/self/cgroup", controller):
        swapped = ",".join(reversed(controllers.split(",")))
        names = dict.fromkeys((controllers, swapped, controller)) if controllers else ("",)
        for name in names:
            for group in (path, *path.parents):
                yield Cgroup(mounts / name / group.relative_to("/"), is_v1=bool(controllers))


def number_of(text: str, key: str) -> int | None:
    """The number behind `key` in lines of keys and numbers."""
    found = dict(line.split()[:2] for line in text.splitlines() if " " in line).get(key, "")
    return int(found) if found.isdecimal() else None


def read_text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _memberships(file: Path, controller: str) -> Iterator[tuple[str, PurePosixPath]]:
    """(controllers, group); of version 2 there are no controllers."""
    for line in read_text(file).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            yield controllers, PurePosixPath(path)


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


DRIVER = "libcuda.so.1"
SUCCESS = 0


def resolve_devices(devices: Sequence[str], count: Callable[[], int] | None = None) -> tuple[str, ...]:
    """ "auto" becomes every CUDA device, or the CPU where there is none; other names stay as they are."""
    if tuple(devices) != ("auto",):
        return tuple(devices)
    return tuple(f"cuda:{index}" for index in range((count or num_cuda_devices)())) or ("cpu",)


def num_cuda_devices(driver: str = DRIVER) -> int:
    """0 without a driver or a device. The driver itself honours CUDA_VISIBLE_DEVICES."""
    try:
        cuda = ctypes.CDLL(driver)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if cuda.cuInit(0) != SUCCESS or cuda.cuDeviceGetCount(ctypes.byref(count)) != SUCCESS:
        return 0
    return count.value


_ARITHMETIC = ("avx", "amx", "fma", "sse", "asimd", "sve", "sme", "bf16", "i8mm")
"""How the abilities begin on which a matrix product depends."""


def cpu_features(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Its sets of instructions for arithmetic (x86 `flags`, Arm `Features`); none where the kernel does not tell."""
    if not path.is_file():
        return frozenset()
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    listed = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return frozenset(each for each in listed.split() if each.startswith(_ARITHMETIC))


logger = logging.getLogger(__name__)

OTHERS = 256
"""Descriptors that are not connections: pipes to replicas, files, libraries; and connections about to be refused."""


def fit_connections(connections: int) -> int:
    """Raises the soft limit to the hard one; fewer than were asked for are told of in the log."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY or hard >= connections + OTHERS:
        return connections
    allowed = max(1, hard - OTHERS)
    logger.warning("fewer connections than set: the hard limit of open files is low", extra={"connections": allowed})
    return allowed


def is_loopback(host: str | None) -> bool:
    """Whether only this machine can reach the address; other names than localhost are not resolved."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def local_address(host: str) -> str:
    """The address at which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
