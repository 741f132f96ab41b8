"""The host: cores, memory, devices, CPU features and open files, read from file trees made by the tests."""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.domain import Memory
from service.host import (
    RESERVED_FILES,
    correct_proxy_variables,
    cpu_features,
    cpu_name,
    cuda_of_driver,
    driver_version,
    fit_connections,
    install_command,
    num_cores,
    num_cuda_devices,
    oom_kills,
    process_memory,
    resolve_devices,
    service_command,
)
from tests.unit.replicas.trees import tree

CPU_V1 = "4:memory:/app\n2:cpu,cpuacct:/app\n0::/\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, 8, id="no control groups"),
        pytest.param({"proc/self/cgroup": "0::/\n"}, 8, id="v2 without the cpu controller"),
        pytest.param({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8, id="v2 unlimited"),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2, id="v2 in a container"
        ),
        pytest.param({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1, id="v2 half a core"),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 8, id="v2 above the affinity"
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/system.slice/app.service\n",
                "sys/fs/cgroup/system.slice/app.service/cpu.max": "max 100000\n",
                "sys/fs/cgroup/system.slice/cpu.max": "300000 100000\n",
            },
            3,
            id="v2 limited by the parent group",
        ),
        pytest.param(
            {
                "proc/self/cgroup": CPU_V1,
                "sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_period_us": "100000\n",
            },
            4,
            id="v1",
        ),
        pytest.param(
            {
                "proc/self/cgroup": CPU_V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            1,
            id="v1 in a container that does not see its own path",
        ),
        pytest.param(
            {
                "proc/self/cgroup": CPU_V1,
                "sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_period_us": "100000\n",
            },
            8,
            id="v1 unlimited",
        ),
    ],
)
def test_num_cores_follows_the_control_group(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert num_cores(tree(tmp_path, files), num_allowed=8) == expected


def test_num_cores_follows_the_affinity(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"}
    assert num_cores(tree(tmp_path, files), num_allowed=2) == 2


def test_num_cores_of_this_machine_is_positive() -> None:
    assert num_cores() >= 1


PAGE = os.sysconf("SC_PAGE_SIZE")
MACHINE = {"proc/self/statm": "900 7 5 1 0 3 0\n", "proc/meminfo": "MemTotal:  1000 kB\nMemFree:  9 kB\n"}
V2 = {"proc/self/cgroup": "0::/app\n"}
MEM_V1 = {"proc/self/cgroup": "4:memory:/app\n0::/\n"}


@pytest.mark.parametrize(
    ("files", "total"),
    [
        pytest.param({}, 1_024_000, id="no control groups"),
        pytest.param({**V2, "sys/fs/cgroup/app/memory.max": "max\n"}, 1_024_000, id="v2 unlimited"),
        pytest.param({**V2, "sys/fs/cgroup/app/memory.max": "500000\n"}, 500_000, id="v2"),
        pytest.param({**V2, "sys/fs/cgroup/memory.max": "500000\n"}, 500_000, id="v2 in a container"),
        pytest.param({**MEM_V1, "sys/fs/cgroup/memory/app/memory.limit_in_bytes": "400000\n"}, 400_000, id="v1"),
        pytest.param(
            {**MEM_V1, "sys/fs/cgroup/memory/app/memory.limit_in_bytes": "9223372036854771712\n"},
            1_024_000,
            id="v1 unlimited",
        ),
    ],
)
def test_process_memory_follows_the_control_group(tmp_path: Path, files: dict[str, str], total: int) -> None:
    assert process_memory(tree(tmp_path, MACHINE | files)) == Memory(7 * PAGE, total)


@pytest.mark.parametrize(
    ("files", "count"),
    [
        pytest.param({}, 0, id="an old kernel"),
        pytest.param({"proc/vmstat": "oom_kill 3\n"}, 3, id="no control groups"),
        pytest.param({**V2, "sys/fs/cgroup/app/memory.events": "oom 2\noom_kill 1\n"}, 1, id="v2"),
        pytest.param(
            {**MEM_V1, "sys/fs/cgroup/memory/app/memory.oom_control": "under_oom 0\noom_kill 4\n"}, 4, id="v1"
        ),
        pytest.param(
            {
                **MEM_V1,
                "sys/fs/cgroup/memory/app/memory.oom_control": "under_oom 0\n",
                "proc/vmstat": "oom_kill 5\n",
            },
            5,
            id="v1 of a kernel that does not count",
        ),
    ],
)
def test_oom_kills_are_counted_per_control_group(tmp_path: Path, files: dict[str, str], count: int) -> None:
    assert oom_kills(tree(tmp_path, files)) == count


def test_memory_of_this_machine_is_plausible() -> None:
    memory = process_memory()
    assert 0 < memory.allocated < memory.total
    assert oom_kills() >= 0


@pytest.mark.parametrize(
    ("devices", "num_cuda", "expected"),
    [
        (["auto"], 0, ("cpu",)),
        (["auto"], 2, ("cuda:0", "cuda:1")),
        (["cpu"], 2, ("cpu",)),
        (["cuda:1", "cpu"], 4, ("cuda:1", "cpu")),
    ],
)
def test_resolve_devices_expands_auto(devices: list[str], num_cuda: int, expected: tuple[str, ...]) -> None:
    assert resolve_devices(devices, lambda: num_cuda) == expected


def test_num_cuda_devices_is_zero_without_a_driver() -> None:
    assert num_cuda_devices("libthere-is-none.so") == 0


def test_num_cuda_devices_of_this_machine_is_not_negative() -> None:
    assert num_cuda_devices() >= 0


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        (
            "processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16 amx_tile hypervisor\nflags\t\t: fpu\n",
            "avx2 avx512_bf16 amx_tile",
        ),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm crc32\n", "asimd bf16 i8mm"),
        ("processor\t: 0\n", ""),
    ],
)
def test_cpu_features_are_read_from_cpuinfo(tmp_path: Path, listed: str, found: str) -> None:
    (tmp_path / "cpuinfo").write_text(listed)
    assert cpu_features(tmp_path / "cpuinfo") == frozenset(found.split())


def test_cpu_features_are_empty_without_cpuinfo(tmp_path: Path) -> None:
    assert cpu_features(tmp_path / "missing") == frozenset()


@pytest.fixture
def hard() -> Iterator[int]:
    """The hard limit; the soft one is lowered before and restored after."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        pytest.skip("this process has no limit of open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_fit_connections_raises_the_soft_limit_to_the_hard_one(hard: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert fit_connections(hard - RESERVED_FILES) == hard - RESERVED_FILES
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    assert caplog.records == []


def test_fit_connections_logs_when_the_limit_is_lower_than_wanted(hard: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert fit_connections(hard) == hard - RESERVED_FILES
    (record,) = caplog.records
    assert record.connections == hard - RESERVED_FILES  # type: ignore[attr-defined]


def test_a_system_without_proc_has_cores_and_memory(tmp_path: Path) -> None:
    """As macOS."""
    memory = process_memory(tmp_path)
    assert 0 < memory.allocated < memory.total
    assert num_cores(tmp_path) >= 1


def test_without_a_driver_there_is_no_cuda() -> None:
    assert cuda_of_driver("libcuda-of-no-machine.so.1") is None


def test_memory_that_may_not_become_executable_is_noticed() -> None:
    """As with MemoryDenyWriteExecute of systemd; kernels since 6.3 can forbid it to a process."""
    script = (
        "import ctypes; from service.host import may_execute_written_memory as may; "
        "print(may(), ctypes.CDLL(None).prctl(65, 1, 0, 0, 0), may())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    before, refused, after = done.stdout.split()
    if refused != "0":
        pytest.skip("this kernel has no PR_SET_MDWE")
    assert (before, after) == ("True", "False")


def test_the_driver_and_the_cpu_are_named_as_the_system_lists_them(tmp_path: Path) -> None:
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: 12.2.0\n"
    )
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A CPU @ 2.0 GHz\nmodel name\t: another\n")
    assert driver_version(tmp_path / "version") == "550.54.15"
    assert cpu_name(tmp_path / "cpuinfo") == "A CPU @ 2.0 GHz"
    assert driver_version(tmp_path / "missing") is None
    assert cpu_name(tmp_path / "missing") == ""


# proxies

LOOPBACK = "localhost,127.0.0.1,::1"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Without variables of proxies; those that a test sets or the code adds are gone after it."""
    for name in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "GRPC_PROXY", "NO_PROXY"):
        for each in (name, name.lower()):
            monkeypatch.setenv(each, "")
            monkeypatch.delenv(each)
    return monkeypatch


@pytest.mark.parametrize(
    ("name", "value", "corrected"),
    [
        ("ALL_PROXY", "socks://127.0.0.1:7890/", "socks5://127.0.0.1:7890/"),
        ("https_proxy", "socks://u:p@proxy:1", "socks5://u:p@proxy:1"),
        ("HTTPS_PROXY", "socks5h://proxy:1", "socks5h://proxy:1"),
    ],
)
def test_the_scheme_of_a_socks_proxy_is_one_that_clients_know(
    environment: pytest.MonkeyPatch, name: str, value: str, corrected: str
) -> None:
    environment.setenv(name, value)
    correct_proxy_variables()
    assert os.environ[name] == corrected
    httpx.Client().close()


@pytest.mark.parametrize(
    ("excluded", "corrected"),
    [
        ("", LOOPBACK),
        ("a.b, [::1],fe80::1/128,fe80::/10,10.0.0.0/8,c:80", "a.b,::1,fe80::1,10.0.0.0/8,c:80,localhost,127.0.0.1"),
        ("*", "*"),
    ],
)
def test_no_proxy_is_readable_for_clients_and_has_this_machine(
    environment: pytest.MonkeyPatch, excluded: str, corrected: str
) -> None:
    environment.setenv("HTTP_PROXY", "http://proxy:1")
    environment.setenv("NO_PROXY", excluded)
    correct_proxy_variables()
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == corrected
    httpx.Client().close()


def test_without_a_proxy_no_variable_is_set(environment: pytest.MonkeyPatch) -> None:
    correct_proxy_variables()
    assert "no_proxy" not in os.environ


def interpreter_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The interpreter of an environment in `folder`, as the one of this process."""
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    return python


def test_commands_in_messages_start_the_interpreter_of_an_environment_that_is_not_activated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = interpreter_in(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert install_command("-r requirements/train.txt") == ".venv/bin/python -m pip install -r requirements/train.txt"
    assert service_command("key NAME") == ".venv/bin/python -m service key NAME"
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert service_command("key NAME") == f"{python} -m service key NAME"


def test_commands_in_messages_say_python_where_that_is_the_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = interpreter_in(tmp_path, monkeypatch)
    monkeypatch.setenv("PATH", str(python.parent))
    assert service_command("key NAME") == "python -m service key NAME"
