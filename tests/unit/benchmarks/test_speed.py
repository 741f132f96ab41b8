"""The speeds that are measured can be planned with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import speed
from service.tools.bench.provenance import machine_class
from service.tools.capacity import read_speeds


def test_it_measures_what_plan_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.set_num_threads", lambda num: None)  # it would stay so for the tests that follow
    file = tmp_path / "speed.json"
    assert speed.main(["--shapes", "tiny", "--rounds", "1", "--quantization", "none", "--json", str(file)]) == 0
    [found] = read_speeds(file)
    assert (found.model, found.device, found.precision) == ("tiny", "cpu, 1 threads", "bfloat16")
    assert found.cost.token > 0
    report = json.loads(file.read_text())
    assert report["machine"] == machine_class()
    assert report["command"].startswith("python -m benchmarks.speed --shapes tiny")
    assert {"date", "commit", "versions", "method"} <= set(report)
