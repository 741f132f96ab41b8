"""What several benchmarks do."""

from __future__ import annotations

import os
import sys

import pytest

from benchmarks.common import as_worker


def test_a_benchmark_has_the_threads_of_a_worker_process_and_its_own_search_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[dict[str, str]] = []
    monkeypatch.setattr(os, "execve", lambda program, command, variables: started.append(variables))
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    as_worker(3)
    [variables] = started
    assert (variables["OMP_NUM_THREADS"], variables["OMP_WAIT_POLICY"]) == ("3", "PASSIVE")
    assert not set(variables["PYTHONPATH"].split(os.pathsep)) & set(filter(None, sys.path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    as_worker(3)
    assert len(started) == 1
