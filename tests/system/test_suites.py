"""Suites as users run them: every task is trained in its forms, measured where it is served, and handed in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.tools.suites import suites
from tests.checkpoints import make_checkpoint
from tests.support.benchmark_files import write_benchmarks

pytestmark = [pytest.mark.system, pytest.mark.slow]

FLAGS = ("--max-steps", "2", "--batch-size", "4", "--precision", "float32", "--wording", "mini", "--lr", "1e-3")


def run(command: str, *flags: str | Path) -> tuple[int, dict[str, Any]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-m", "service", command, *map(str, flags)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("suites")
    return write_benchmarks(folder / "data"), make_checkpoint(folder / "start", num_layers=1, hidden_size=32)


@pytest.mark.parametrize("suite", ["clue", "fewclue", "semantic-matching"])
@pytest.mark.parametrize(("form", "without"), [("choice", ("sts-b-graded",)), ("head", ("chid", "c3"))])
def test_every_task_of_a_suite_is_trained(
    folders: tuple[Path, Path], tmp_path: Path, suite: str, form: str, without: tuple[str, ...]
) -> None:
    data, start = folders
    code, printed = run(
        "finetune", "--suite", suite, "--data", data, "--model", start, "--output", tmp_path, "--form", form, *FLAGS
    )
    left_out = [task for task in suites()[suite].tasks if task.rpartition("/")[2] in without]
    assert list(printed["not_trained"]) == left_out
    assert code == (2 if left_out else 0)
    trained = {run["task"]: run["form"] for run in printed["runs"]}
    assert trained == {task: form for task in suites()[suite].tasks if task not in left_out}


def test_the_runs_of_a_suite_are_served_measured_and_handed_in(folders: tuple[Path, Path], tmp_path: Path) -> None:
    data, start = folders
    output = tmp_path / "runs"
    task = ("--suite", "fewclue", "bustm", "--data", data)
    code, printed = run(
        "finetune", *task, "--model", start, "--output", output, "--fold", "each", "--test", "test", *FLAGS
    )
    assert code == 0
    assert printed["table"][0]["runs"] == 5

    code, served = run("evaluate", *task, "--model", output, "--against", "card")
    assert code == 0
    assert [one["fold"] for one in served["runs"]] == list("01234")
    # Weights are stored in half precision: of 20 answers of a model that has hardly learned, one may turn.
    assert served["table"][0]["mean"] == pytest.approx(printed["table"][0]["mean"], abs=100 / 20)

    code, submitted = run("evaluate", *task, "--model", output, "--submit", tmp_path / "hand-in")
    assert code == 0
    names = [Path(file).name for file in submitted["files"]]
    assert names == [*(f"bustm_predict_{fold}.json" for fold in range(5)), "fewclue_predict.zip"]


def test_a_regression_that_a_suite_has_trained_is_measured(folders: tuple[Path, Path], tmp_path: Path) -> None:
    data, start = folders
    task = ("--suite", "semantic-matching", "sts-b-graded", "--data", data)
    code, _ = run("finetune", *task, "--model", start, "--output", tmp_path / "runs", "--form", "head", *FLAGS)
    assert code == 0
    code, measured = run("evaluate", *task, "--model", tmp_path / "runs")
    assert code == 0
    assert [(row["metric"], row["form"]) for row in measured["table"]] == [("spearman", "head")]
