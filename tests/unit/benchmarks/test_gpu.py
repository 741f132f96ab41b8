"""`python -m benchmarks.gpu` without a GPU: every part runs, and a part that fails does not end the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import Figures, Setting
from service.engine.attention import BACKENDS, TYPICAL, Backend

OUT_OF_RESOURCE = "failed: RuntimeError: out of resource"
PARTS = [part for part in gpu.PARTS if part not in ("over_http", "restart")]  # these start processes


def measure(folder: Path, parts: str) -> tuple[int, dict[str, dict[str, object]]]:
    status = gpu.main(["--device", "cpu", "--tiny", "--parts", parts, "--output", str(folder)])
    [file] = folder.iterdir()
    return status, json.loads(file.read_text(encoding="utf-8"))["figures"]


@pytest.mark.slow
def test_every_part_runs_without_a_gpu(tmp_path: Path) -> None:
    status, figures = measure(tmp_path, ",".join(PARTS))
    assert status == 0
    assert list(figures) == PARTS
    assert figures["parity"]["sdpa float32"] == {"max_difference": 0.0, "least_cosine": pytest.approx(1)}
    assert figures["parity"]["fp8"] == "failed: SettingError: quantization 'fp8': not on cpu"


def test_a_way_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> NoReturn:
        raise RuntimeError("out of resource\nand a long story")

    monkeypatch.setitem(BACKENDS, "flex", Backend(fail, runs_on=lambda place: True))
    status, figures = measure(tmp_path, "parity,attention")
    assert status == 0
    assert str(figures["parity"]["flex float32"]).startswith("failed: SettingError: cpu computes attention wrongly")
    assert str(figures["parity"]["flex float32"]).endswith("RuntimeError: out of resource")
    flex = figures["attention"]["typical, flex"]
    assert flex == {"tokens": TYPICAL.num_tokens, **dict.fromkeys(("launched_ms", "graph_ms"), OUT_OF_RESOURCE)}
    assert figures["parity"]["sdpa float32"] == {"max_difference": 0.0, "least_cosine": pytest.approx(1)}


def test_a_part_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(setting: Setting) -> Figures:
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(gpu.PARTS, "latency", fail)
    status, figures = measure(tmp_path, "latency,full_batches")
    assert status == 1
    assert figures["latency"] == {"failed": "RuntimeError: no such kernel"}
    assert figures["full_batches"]["tokens"] == 1024


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_machine_without_a_gpu_has_an_exit_status_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--folder", str(tmp_path)]) == gpu.NO_GPU
    assert "finds no GPU on this machine" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_each_part_has_a_file_of_its_own_and_no_part_starts_after_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure_something(setting: Setting) -> Figures:
        return {"tokens": 7}

    monkeypatch.setitem(gpu.PARTS, "latency", measure_something)
    flags = ["--device", "cpu", "--tiny", "--parts", "latency,restart", "--folder", str(tmp_path)]
    assert gpu.main([*flags, "--limit-s", "-1"]) == 1
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["1_latency.json", "2_restart.json"]
    assert json.loads(files[1].read_text())["figures"]["restart"]["failed"].startswith("not started")
    monkeypatch.setitem(gpu.PARTS, "restart", measure_something)
    assert gpu.main(flags) == 0
    assert json.loads(files[1].read_text())["figures"] == {"restart": {"tokens": 7}}
