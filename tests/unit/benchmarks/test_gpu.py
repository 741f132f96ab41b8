"""The GPU benchmark in its dry mode: it runs where there is no GPU, and a part that fails does not end it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu_parts import Figures, Setting

PARTS = [part for part in gpu.PARTS if part != "restart"]  # that one starts processes


def measure(folder: Path, parts: str) -> tuple[int, dict[str, dict[str, object]]]:
    status = gpu.main(["--device", "cpu", "--tiny", "--parts", parts, "--output", str(folder)])
    [file] = folder.iterdir()
    return status, json.loads(file.read_text(encoding="utf-8"))["figures"]


def test_every_part_runs_without_a_gpu(tmp_path: Path) -> None:
    status, figures = measure(tmp_path, ",".join(PARTS))
    assert status == 0
    assert list(figures) == PARTS
    assert figures["parity"]["sdpa float32"] == {"max_difference": 0.0, "least_cosine": pytest.approx(1)}
    assert figures["parity"]["fp8"] == "not on this device"


def test_a_part_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(setting: Setting) -> Figures:
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(gpu.PARTS, "latency", fail)
    status, figures = measure(tmp_path, "latency,full_batches")
    assert status == 1
    assert figures["latency"] == {"failed": "RuntimeError: no such kernel"}
    assert figures["full_batches"]["tokens"] == 1024
