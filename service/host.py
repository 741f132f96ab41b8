"""Reads what this machine provides: cores, memory, control groups (v1 and v2), devices, CPU features, files, proxies.

A missing file reads as empty: many systems have no control groups.
"""

from __future__ import annotations

import ctypes
import ipaddress
import logging
import mmap
import os
import re
import resource
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from service.domain import Memory


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The folder of a control group. It may not exist: a container cannot see the path of its own group."""

    folder: Path
    is_v1: bool

    def read(self, name: str) -> str:
        return read_text(self.folder / name)


def cgroups(controller: str, root: Path = Path("/")) -> Iterator[Cgroup]:
    """The control group of this process and all its parents, in the v1 hierarchy of `controller` and in v2."""
    mounts = root / "sys/fs/cgroup"
    for controllers, path in _memberships(root / "proc/self/cgroup", controller):
        swapped = ",".join(reversed(controllers.split(",")))
        names = dict.fromkeys((controllers, swapped, controller)) if controllers else ("",)
        for name in names:
            for group in (path, *path.parents):
                yield Cgroup(mounts / name / group.relative_to("/"), is_v1=bool(controllers))


def number_of(text: str, key: str) -> int | None:
    """The number after `key` in a text with one key and number per line; None if there is none."""
    found = dict(line.split()[:2] for line in text.splitlines() if " " in line).get(key, "")
    return int(found) if found.isdecimal() else None


def read_text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _memberships(file: Path, controller: str) -> Iterator[tuple[str, PurePosixPath]]:
    """Pairs of (controllers, path); controllers is empty for v2."""
    for line in read_text(file).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            yield controllers, PurePosixPath(path)


def num_cores(root: Path = Path("/"), num_allowed: int | None = None) -> int:
    """The number of cores that this process may use, at least 1; a quota of 2.5 cores counts as 2.

    `num_allowed` is the size of the affinity mask.
    """
    allowed = count_allowed_cores() if num_allowed is None else num_allowed
    return max(1, int(min([allowed, *_quotas(root)])))


def count_allowed_cores() -> int:
    """The size of the affinity mask; all cores where the system has none (macOS)."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """The CPU quotas of this process's control group and all its parents, in cores."""
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
"""Control groups v1 report a limit above this if there is none."""


def process_memory(root: Path = Path("/")) -> Memory:
    """Resident memory of this process, and the limit of its control group, or else the memory of the machine."""
    page_size, pages = os.sysconf("SC_PAGE_SIZE"), read_text(root / "proc/self/statm").split()
    # macOS has no /proc, and counts the highest resident memory in bytes.
    held = int(pages[1]) * page_size if pages else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    total = number_of(read_text(root / "proc/meminfo"), "MemTotal:")
    machine = total * 1024 if total else os.sysconf("SC_PHYS_PAGES") * page_size
    return Memory(allocated=held, total=min([machine, *_memory_limits(root)]))


THREAD_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "5000"}
"""Variables that OpenMP reads when torch is imported. Its threads wait for the next step busily, but for a fraction of
a millisecond only: where they sleep at once, small batches take up to 1.7 times as long and a step of training 1.3
times; where they wait for longer, they take the cores from requests."""


def thread_variables(threads: int) -> dict[str, str]:
    """The environment of a process that computes with so many threads."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return {**THREAD_WAITING, **os.environ, **counts}


def return_freed_memory() -> None:
    """Gives memory that was freed back to the system. glibc keeps blocks of less than 32 MB; elsewhere a no-op."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def may_execute_written_memory() -> bool:
    """Whether this process may make memory executable that it has written, as the kernels of oneDNN and Triton need.

    MemoryDenyWriteExecute of systemd and SELinux's execmem forbid it.
    """
    libc = ctypes.CDLL(None)
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        view = ctypes.c_char.from_buffer(page)
        address = ctypes.c_void_p(ctypes.addressof(view))
        protection = mmap.PROT_READ | mmap.PROT_EXEC
        is_allowed: bool = libc.mprotect(address, ctypes.c_size_t(mmap.PAGESIZE), protection) == 0
        if is_allowed:
            libc.mprotect(address, ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE)
        del view
    return is_allowed


class OomKills:
    """Out-of-memory kills by the kernel that are not yet attributed to a worker process; shared by all replicas."""

    def __init__(self, count: Callable[[], int] | None = None) -> None:
        self._count = count or oom_kills
        self._num_taken = self._count()

    def take(self) -> bool:
        """Takes one kill; False if there is none."""
        has_one = self._count() > self._num_taken
        self._num_taken += has_one
        return has_one


def oom_kills(root: Path = Path("/")) -> int:
    """The number of out-of-memory kills in this control group, or else on the machine."""
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
    """Replaces "auto" by all CUDA devices, or by the CPU if there are none; other names are unchanged."""
    if tuple(devices) != ("auto",):
        return tuple(devices)
    return tuple(f"cuda:{index}" for index in range((count or num_cuda_devices)())) or ("cpu",)


def num_cuda_devices(driver: str = DRIVER) -> int:
    """The number of CUDA devices; 0 without a driver. The driver applies CUDA_VISIBLE_DEVICES."""
    try:
        cuda = ctypes.CDLL(driver)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if cuda.cuInit(0) != SUCCESS or cuda.cuDeviceGetCount(ctypes.byref(count)) != SUCCESS:
        return 0
    return count.value


def cuda_of_driver(driver: str = DRIVER) -> tuple[int, int] | None:
    """The newest CUDA that the installed NVIDIA driver supports, such as (12, 4); None without a driver."""
    try:
        cuda = ctypes.CDLL(driver)
    except OSError:
        return None
    version = ctypes.c_int(0)
    if cuda.cuDriverGetVersion(ctypes.byref(version)) != SUCCESS or not version.value:
        return None
    return version.value // 1000, version.value % 1000 // 10


def driver_version(path: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """The version of the NVIDIA driver, such as 550.54.15; None without one, or where the file is not mounted."""
    found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)", read_text(path))
    return found[1] if found else None


_ARITHMETIC = ("avx", "amx", "fma", "sse", "asimd", "sve", "sme", "bf16", "i8mm")
"""Prefixes of the CPU features that affect matrix products."""


def cpu_features(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The CPU's instruction sets for arithmetic (x86 `flags`, Arm `Features`); empty if none are listed."""
    if not path.is_file():
        return frozenset()
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    listed = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return frozenset(each for each in listed.split() if each.startswith(_ARITHMETIC))


def cpu_name(path: Path = Path("/proc/cpuinfo")) -> str:
    """The model of the CPU; empty where it is not listed, as on Arm."""
    lines = read_text(path).splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


logger = logging.getLogger(__name__)

RESERVED_FILES = 256
"""File descriptors for other uses than connections: pipes to replicas, files, libraries, connections to be refused."""


def fit_connections(connections: int) -> int:
    """Raises the soft limit of open files to the hard limit. Returns the number of connections that fit, at most
    `connections`, and logs a warning if it is less."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY or hard >= connections + RESERVED_FILES:
        return connections
    allowed = max(1, hard - RESERVED_FILES)
    logger.warning(
        "max_connections lowered to fit the hard limit of open files; raise it with ulimit -Hn",
        extra={"connections": allowed},
    )
    return allowed


def is_loopback(host: str | None) -> bool:
    """Whether only this machine can reach the address. Host names other than localhost are not resolved."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def local_address(host: str) -> str:
    """The address with which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def python_command() -> str:
    """What starts the interpreter of this process in a shell: `python` where PATH finds it, else its path, below the
    current directory a relative one. An environment that is not activated has another `python`, or none."""
    own = Path(sys.executable).absolute()
    if (found := shutil.which("python")) is not None and Path(found).absolute() == own:
        return "python"
    return shlex.quote(str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own))


def install_command(packages: str) -> str:
    return f"{python_command()} -m pip install {packages}"


def service_command(words: str) -> str:
    return f"{python_command()} -m service {words}"


def open_closed_streams() -> None:
    """Opens /dev/null for each standard stream that was closed before the start.

    Otherwise the next file or socket that is opened would get the stream's number, and what is written to the stream.
    """
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number: this one
            setattr(sys, name, open(fd, "r" if fd == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115


_PROXY_VARIABLES = ("all_proxy", "http_proxy", "https_proxy", "grpc_proxy")


def correct_proxy_variables() -> None:
    """Lets every HTTP client of this process work with the variables of proxies, and reach loopback without one.

    httpx refuses some values, whatever the address: `socks://`, which GNOME sets, is SOCKS 5; in NO_PROXY it takes an
    IPv6 address only without brackets and prefix, and a network of them, which it could not match, is left out.
    """
    found = {name: value for name, value in os.environ.items() if name.lower() in _PROXY_VARIABLES and value}
    for name, value in found.items():
        if value.startswith("socks://"):
            os.environ[name] = value.replace("socks", "socks5", 1)
    if not found:
        return
    excluded = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    entries = [entry for text in excluded.split(",") if text.strip() and (entry := _plain_ipv6(text.strip()))]
    if "*" not in entries:
        entries = list(dict.fromkeys((*entries, "localhost", "127.0.0.1", "::1")))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(entries)  # gRPC reads the first only


def _plain_ipv6(entry: str) -> str | None:
    """The address of `[::1]` and `::1/128`, None for a larger network, and any other entry as it is."""
    try:
        network = ipaddress.IPv6Network(entry.replace("[", "").replace("]", ""), strict=False)
    except ValueError:
        return entry
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else None
