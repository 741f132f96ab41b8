"""`runs`: the table of runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service import cli
from service.tools.training.run_file import RunFile

IDENTITY = {
    "data": {"source": "data/reviews.csv", "train": "1", "dev": "2"},
    "model": {"source": "mini", "weights": "3"},
    "form": "head",
    "learning_rate": 1e-3,
    "seed": 0,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, accuracy in (("a", 0.5), ("b", 0.75)):
        (tmp_path / name).mkdir()
        run = RunFile(tmp_path / name, IDENTITY, {})
        run.log(10, {"dev": {"accuracy": 0.25}})
        dev = {"accuracy": accuracy, "macro_f1": accuracy}
        run.finish({"dev": dev, "learning_rate": 1e-3, "best_step": 10, "seconds": 1.5})
    (tmp_path / "c").mkdir()
    RunFile(tmp_path / "c", IDENTITY, {}).log(20, {"dev": {"accuracy": 0.625}})
    return tmp_path


def test_a_line_for_each_run_best_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runs", str(folder), "--sort", "accuracy"]) == 0
    header, *lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert "spearman" not in header
    assert [Path(line[0]).name for line in lines] == ["b", "c", "a"]
    assert lines[0][header.index("data")] == "reviews.csv"


def test_an_interrupted_run_shows_its_last_evaluation(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runs", str(folder / "c"), "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["status"], row["step"], row["accuracy"]) == ("running or interrupted", 20, 0.625)


def test_no_run_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runs", str(tmp_path)]) == 2
    assert "no run.json in" in capsys.readouterr().err
