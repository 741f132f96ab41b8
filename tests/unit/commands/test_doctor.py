"""`python -m service doctor`: the report of a machine and its models, what it leaves out, and its advice."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from service import cli
from service.commands import doctor
from service.commands.doctor import Report, advise, redact
from service.engine import calibration
from service.engine.linear import OneDnn
from tests.checkpoints import make_checkpoint

MODEL = {
    "model": "model 1",
    "device": "cuda:0",
    "tried": [{"kind": "attention", "name": "sdpa", "is_used": True, "reason": ""}],
    "memory": {"device": {"allocated": 10, "total": 100}, "process_grew_bytes": 5},
}
GPU = {"name": "a GPU", "capability": "8.0", "memory_bytes": 100}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "LONGEST_S", 0.0)  # the profile ends after its first forward
    monkeypatch.setattr(doctor, "environment", lambda threads: {})  # the tests' own process keeps its environment


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "secret-name", num_layers=1, hidden_size=16, num_heads=2)


def examine(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, Report]:
    code = cli.main(["doctor", "--json", "--devices", "cpu", "--weight-cache-dir", "off", *flags])
    report: Report = json.loads(capsys.readouterr().out)
    return code, report


def machine(**changes: Any) -> Report:
    report: Report = {
        "gpus": [GPU],
        "build": {"cuda": "12.6", "driver_cuda": "12.8"},
        "cpu": {"features": ["avx2"], "may_execute_written_memory": True},
        "settings": {"devices": ["cuda:0"], "quantization": "none"},
        "memory_bytes": 1000,
        "models": [MODEL],
    }
    return report | changes


def test_the_report_has_hardware_libraries_and_what_was_tried_and_chosen(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = examine(capsys, "--model", str(path), "--precision", "float32", "--runtime", "torch")
    assert code == 0
    assert report["cpu"]["cores"] >= 1
    assert report["build"]["torch"] == torch.__version__
    [model] = report["models"]
    assert model["chosen"] == {
        "precision": "float32",
        "runtime": "torch",
        "linear": "OneDnn",
        "attention": "sdpa",
    }
    assert [(each["kind"], each["name"], each["is_used"]) for each in model["tried"]] == [
        ("linear", "OneDnn float32", True),
        ("attention", "sdpa", True),
    ]
    assert all(each["ms"] > 0 for each in model["tried"])
    assert [(step["tokens"], step["rows"]) for step in model["forwards"]] == [(16, 1)]
    assert model["memory"]["parameters"] > 0
    assert model["load_s"] > 0


def test_the_report_names_no_path_no_host_and_no_model_of_the_user(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, report = examine(capsys, "--model", f"secret-name={path}", "--model", f"other={path.parent / 'nowhere'}")
    text = json.dumps(report)
    assert "secret-name" not in text
    assert str(path.parent) not in text
    assert f'"{socket.gethostname()}"' not in text
    assert [model["model"] for model in report["models"]] == ["model 1", "model 2"]


def test_a_model_that_cannot_be_loaded_is_reported_with_the_others(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = examine(capsys, "--model", f"bad={path.parent / 'nowhere'}", "--model", f"good={path}")
    bad, good = report["models"]
    assert code == 1
    assert bad["failed"] == "<path>: no such directory"
    assert good["chosen"]["attention"] in ("sdpa", "onnxruntime")
    assert "model 1 on cpu cannot be loaded: <path>: no such directory" in report["advice"]


def test_a_model_of_a_hub_is_not_named_either(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--offline", "--cache-dir", str(tmp_path), "--model", "mine=secret-org/secret-name"]
    code, report = examine(capsys, *flags)
    assert code == 1
    assert "not in the cache, and offline mode is on" in report["models"][0]["failed"]
    assert "secret" not in json.dumps(report)


def test_a_kernel_that_fails_the_self_test_is_reported(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(linear: OneDnn, hidden: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel in /home/somebody/cache/kernel.so")

    monkeypatch.setattr(OneDnn, "__call__", fail)
    code, report = examine(capsys, "--model", str(path), "--precision", "float32", "--runtime", "torch")
    [model] = report["models"]
    assert code == 1
    assert model["chosen"]["linear"] == "Plain"
    assert model["tried"][0]["reason"] == "RuntimeError: no kernel in <path>"
    assert any("linear OneDnn float32 failed the self-test" in each for each in report["advice"])


def test_sound_graphs_share_a_line_of_the_text() -> None:
    def graph(name: str, reason: str = "") -> Report:
        return {"kind": "graph", "name": name, "is_used": not reason, "ms": 1.0, "reason": reason}

    lines = list(doctor._format_tried([graph("dense 32"), graph("dense 64", "differs"), graph("dense 96")]))
    assert [" ".join(line.split()) for line in lines] == [
        "tried graph dense 64 1.00 ms LEFT OUT: differs",
        "tried graphs with dense attention, of 32, 96 tokens ok",
    ]


def test_the_text_shows_what_was_tried_and_chosen(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--devices", "cpu", "--precision", "float32", "--model", str(path)]
    assert cli.main(["doctor", "--runtime", "torch", *flags]) == 0
    text = capsys.readouterr().out
    assert "chosen   float32 by torch, maps OneDnn, attention sdpa" in text
    assert "tried    attention sdpa" in text
    assert "measured" not in text
    assert cli.main(["doctor", *flags]) == 0
    text = capsys.readouterr().out
    assert "measured a layer by torch float32" in text
    assert "measured a layer by onnxruntime float32" in text
    assert "to change:" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"build": {"cuda": None, "driver_cuda": "12.8"}, "gpus": []}, "torch is built without CUDA"),
        ({"gpus": []}, "torch finds no GPU: the driver is for CUDA 12.8, torch for 12.6"),
        ({"settings": {"devices": ["cpu"], "quantization": "none"}}, "leave out --devices cpu"),
        ({"gpus": [GPU | {"capability": "9.0"}]}, "--quantization fp8"),
        ({"cpu": {"features": [], "may_execute_written_memory": False}}, "MemoryDenyWriteExecute"),
        (
            {
                "gpus": [],
                "build": {"cuda": None, "driver_cuda": None},
                "settings": {"devices": ["cpu"], "quantization": "none"},
                "cpu": {"features": ["avx512_vnni"], "may_execute_written_memory": True},
            },
            "--quantization int8",
        ),
        (
            {"models": [MODEL | {"memory": {"device": {"allocated": 90, "total": 100}, "process_grew_bytes": 5}}]},
            "more than 80 % of the memory",
        ),
    ],
)
def test_the_advice_says_what_to_change(changes: Report, words: str) -> None:
    [advice] = advise(machine(**changes))
    assert words in advice


def test_a_machine_that_is_well_used_needs_no_advice() -> None:
    assert list(advise(machine())) == []


def test_redact_removes_paths_and_the_name_of_the_host() -> None:
    text = "box-7: cannot open '/home/ann/.cache/x.so' or ~/y and ../z, rate 5 tokens/s"
    assert redact(text, "box-7") == "<host>: cannot open '<path>' or <path> and <path>, rate 5 tokens/s"
