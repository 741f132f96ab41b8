"""The engine benchmarks: measured speeds are what `python -m service plan` reads; the race of waiting threads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.engine import speed, waiting
from benchmarks.engine.runtimes import race
from service.tools.capacity import read_speeds


def test_speeds_are_read_by_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.set_num_threads", lambda num: None)  # it would hold for the tests that follow
    file = tmp_path / "speed.json"
    assert speed.main(["--shapes", "tiny", "--rounds", "1", "--json", str(file)]) == 0
    [found] = read_speeds(file)
    assert (found.model, found.device) == ("tiny", "cpu, 1 threads")
    assert found.cost.token > 0
    report = json.loads(file.read_text())
    assert report["command"].startswith("python -m benchmarks.engine speed --shapes tiny")


class Computes:
    """Takes so many seconds for the single rows of two parts, and half of them for batches."""

    def __init__(self, seconds: float, asked: list[tuple[float, str, str]]) -> None:
        self._seconds = seconds
        self._asked = asked

    def ask(self, part: str, batch_rows: str) -> dict[str, Any]:
        self._asked.append((self._seconds, part, batch_rows))
        return {"clock": self._seconds / (2 if batch_rows == "16" else 1) / 2, "cpu": 1.0}


def test_processes_that_wait_for_different_times_take_turns() -> None:
    asked: list[tuple[float, str, str]] = []
    processes: Any = {0: Computes(0.6, asked), 5000: Computes(0.4, asked)}
    rounds = list(race([waiting.contender(turns, each) for turns, each in processes.items()], 2, 2))
    assert len(asked) == (1 + 2) * 2 * 2 * 2, "a round that does not count, then two, of two parts by two in two ways"
    assert [seconds for seconds, _, size in asked if size == "16"][:4] == [0.6, 0.4, 0.4, 0.6], "in another order"
    assert waiting.summarize(rounds, list(processes), num_rows=10) == [
        {"turns": 0, "batch_rows": 1, "ms_of_a_row": 60, "cpu_ms_of_a_row": 200, "times_as_fast": [1, 1, 1]},
        {"turns": 5000, "batch_rows": 1, "ms_of_a_row": 40, "cpu_ms_of_a_row": 200, "times_as_fast": [1.5, 1.5, 1.5]},
        {"turns": 0, "batch_rows": 16, "ms_of_a_row": 30, "cpu_ms_of_a_row": 200, "times_as_fast": [1, 1, 1]},
        {"turns": 5000, "batch_rows": 16, "ms_of_a_row": 20, "cpu_ms_of_a_row": 200, "times_as_fast": [1.5, 1.5, 1.5]},
    ]
