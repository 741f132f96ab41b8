"""What the kernel says of memory, on made-up file trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.domain import Memory
from service.replicas.memory import oom_kills, process_memory
from tests.unit.replicas.trees import tree

PAGE = os.sysconf("SC_PAGE_SIZE")
MACHINE = {"proc/self/statm": "900 7 5 1 0 3 0\n", "proc/meminfo": "MemTotal:  1000 kB\nMemFree:  9 kB\n"}
V2 = {"proc/self/cgroup": "0::/app\n"}
V1 = {"proc/self/cgroup": "4:memory:/app\n0::/\n"}


@pytest.mark.parametrize(
    ("files", "total"),
    [
        pytest.param({}, 1_024_000, id="no control groups"),
        pytest.param({**V2, "sys/fs/cgroup/app/memory.max": "max\n"}, 1_024_000, id="v2 unlimited"),
        pytest.param({**V2, "sys/fs/cgroup/app/memory.max": "500000\n"}, 500_000, id="v2"),
        pytest.param({**V2, "sys/fs/cgroup/memory.max": "500000\n"}, 500_000, id="v2 in a container"),
        pytest.param({**V1, "sys/fs/cgroup/memory/app/memory.limit_in_bytes": "400000\n"}, 400_000, id="v1"),
        pytest.param(
            {**V1, "sys/fs/cgroup/memory/app/memory.limit_in_bytes": "9223372036854771712\n"},
            1_024_000,
            id="v1 unlimited",
        ),
    ],
)
def test_what_there_is(tmp_path: Path, files: dict[str, str], total: int) -> None:
    assert process_memory(tree(tmp_path, MACHINE | files)) == Memory(7 * PAGE, total)


@pytest.mark.parametrize(
    ("files", "count"),
    [
        pytest.param({}, 0, id="an old kernel"),
        pytest.param({"proc/vmstat": "oom_kill 3\n"}, 3, id="no control groups"),
        pytest.param({**V2, "sys/fs/cgroup/app/memory.events": "oom 2\noom_kill 1\n"}, 1, id="v2"),
        pytest.param({**V1, "sys/fs/cgroup/memory/app/memory.oom_control": "under_oom 0\noom_kill 4\n"}, 4, id="v1"),
        pytest.param(
            {**V1, "sys/fs/cgroup/memory/app/memory.oom_control": "under_oom 0\n", "proc/vmstat": "oom_kill 5\n"},
            5,
            id="v1 of a kernel that does not count",
        ),
    ],
)
def test_who_was_killed_for_it(tmp_path: Path, files: dict[str, str], count: int) -> None:
    assert oom_kills(tree(tmp_path, files)) == count


def test_this_machine() -> None:
    memory = process_memory()
    assert 0 < memory.allocated < memory.total
    assert oom_kills() >= 0
