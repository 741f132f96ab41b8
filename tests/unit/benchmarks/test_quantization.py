"""Which arithmetics are compared on a device, what is reported, and when the gate shuts; no server is started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import quantization

ACCURACIES = {
    "none": {"a/dev": (160, 85.0), "b/dev": (200, 70.0)},
    "int8": {"a/dev": (160, 85.5), "b/dev": (200, 69.0)},
    "fp8": {"a/dev": (160, 83.9), "b/dev": (200, 70.0)},
}


def run(monkeypatch: pytest.MonkeyPatch, file: Path, *flags: str) -> tuple[int, dict[str, object]]:
    monkeypatch.setattr(quantization, "accuracies", lambda name, arguments: ACCURACIES[name])
    status = quantization.main(["--data", "DATA", "--json", str(file), *flags])
    return status, json.loads(file.read_text(encoding="utf-8"))


def test_a_cpu_has_int8_and_hopper_both(monkeypatch: pytest.MonkeyPatch) -> None:
    assert quantization.on(torch.device("cpu")) == ["int8"]
    for capability, wanted in (((8, 0), ["int8"]), ((9, 0), ["int8", "fp8"])):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert quantization.on(torch.device("cuda", 0)) == wanted


def test_one_point_may_be_lost_and_no_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, document = run(monkeypatch, tmp_path / "r.json")
    assert status == 0
    assert document["sets"] == {
        "a/dev": {"examples": 160, "exact": 85.0, "int8": {"accuracy": 85.5, "lost": -0.5}},
        "b/dev": {"examples": 200, "exact": 70.0, "int8": {"accuracy": 69.0, "lost": 1.0}},
    }
    status, document = run(monkeypatch, tmp_path / "r.json", "--quantization", "int8,fp8")
    assert status == 1
    assert document["quantizations"] == ["int8", "fp8"]
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "| a/dev | 85.0 % | 85.5 % | -0.5 | 83.9 % | 1.1 |",
        "| b/dev | 70.0 % | 69.0 % | 1.0 | 70.0 % | 0.0 |",
    ]


def test_the_report_names_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, document = run(monkeypatch, tmp_path / "r.json", "--limit", "5")
    assert document["command"] == "python -m benchmarks.quantization --data DATA --json FOLDER/r.json --limit 5"
    assert (document["device"], document["examples"]) == ("cpu", "5 of each set at most")
