"""The engine benchmarks: measured speeds are what `python -m service plan` reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.engine import speed
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
