"""Worker processes that `serve` starts ahead of the imports of the server."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from service.commands import launching
from service.replicas.runner import ENGINE_MODULE
from service.settings import Replicas, Settings


class Launching:
    """In place of `launch`: the system allows so many processes."""

    def __init__(self, allowed: int) -> None:
        self.calls: list[tuple[int, str]] = []
        self._allowed = allowed

    def __call__(self, threads: int, imports: str) -> Any:
        if len(self.calls) == self._allowed:
            raise BlockingIOError
        self.calls.append((threads, imports))
        return len(self.calls)


@pytest.mark.parametrize("allowed", [3, 2, 0])
def test_a_worker_is_launched_for_each_replica_while_the_system_allows_it(
    allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = Launching(allowed)
    monkeypatch.setattr(launching, "launch", launch)
    settings = Settings(replicas=Replicas(devices=("cpu", "cpu", "cpu"), threads=2))
    assert len(launching.launch_workers(settings)) == allowed
    assert launch.calls == [(2, ENGINE_MODULE)] * allowed


def test_the_server_is_not_imported_before_the_workers_are_launched() -> None:
    code = "import sys, service.commands.serve; print({'fastapi', 'uvicorn', 'torch', 'tokenizers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
