"""`finetune --suite`: which runs there are, what a task without data does, and the record of the runs."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import pytest

from service.commands.finetune_flags import add_arguments
from service.commands.suite_training import planned_runs, train_suite
from service.errors import DatasetError, SettingError, StartupError


def parse(output: Path, *words: str) -> Namespace:
    parser = ArgumentParser()
    add_arguments(parser)
    output.mkdir(parents=True, exist_ok=True)
    return parser.parse_args(["--model", "mini", "--data", str(output), "--output", str(output), *words])


def trained(one: Namespace) -> dict[str, Any]:
    share = 0.5 + (int(one.fold or 0) + one.seed) / 100
    return {"form": "choice", "dev": {"accuracy": share, "macro_f1": share}, "examples": {"train": 4, "dev": 8}}


def test_a_few_shot_suite_has_a_run_for_each_fold_and_seed(tmp_path: Path) -> None:
    args = parse(tmp_path, "--suite", "fewclue", "--fold", "each", "--seeds", "1,2")
    folders = [run.folder for run in planned_runs(args, ("fewclue/csl",))]
    assert folders[:3] == ["csl/fold-0/seed-1", "csl/fold-0/seed-2", "csl/fold-1/seed-1"]
    assert len(folders) == 10


def test_a_task_without_folds_has_one_run(tmp_path: Path) -> None:
    args = parse(tmp_path, "--suite", "clue", "--fold", "each")
    assert [run.folder for run in planned_runs(args, ("clue/cluewsc",))] == ["cluewsc"]


def test_runs_have_a_mean_and_are_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = parse(tmp_path, "--suite", "fewclue", "tnews", "--fold", "each", "--against", "card")
    assert train_suite(args, trained) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["table"][0]["mean"] == 52.0
    assert printed["table"][0]["difference"] == -5.46
    recorded = json.loads((tmp_path / "suite.json").read_text())
    assert [run["folder"] for run in recorded["runs"]] == [f"tnews/fold-{fold}" for fold in range(5)]


def test_tasks_that_are_trained_one_by_one_are_recorded_together(tmp_path: Path) -> None:
    for task in ("tnews", "csl"):
        train_suite(parse(tmp_path, "--suite", "fewclue", task), trained)
    recorded = json.loads((tmp_path / "suite.json").read_text())
    assert [run["folder"] for run in recorded["runs"]] == ["tnews", "csl"]


def test_the_test_set_counts_where_it_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tested(one: Namespace) -> dict[str, Any]:
        found = trained(one)
        return found | {"test": {"accuracy": 0.25}, "examples": {"train": 4, "dev": 8, "test": 16}}

    train_suite(parse(tmp_path, "--suite", "fewclue", "csl"), tested)
    [row] = json.loads(capsys.readouterr().out)["table"]
    assert (row["mean"], row["examples"]) == (25.0, 16)


def test_a_task_without_data_is_named_and_the_others_are_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_csl(one: Namespace) -> dict[str, Any]:
        if one.source == "fewclue/csl":
            raise DatasetError("no such data file")
        return trained(one)

    assert train_suite(parse(tmp_path, "--suite", "fewclue"), without_csl) == 2
    printed = json.loads(capsys.readouterr().out)
    assert printed["not_trained"] == {"fewclue/csl": "no such data file"}
    assert len(printed["runs"]) == 8


def test_nothing_to_train_is_an_error(tmp_path: Path) -> None:
    def nothing(one: Namespace) -> dict[str, Any]:
        raise SettingError("--form choice: no")

    with pytest.raises(StartupError, match="clue/afqmc: --form choice: no"):
        train_suite(parse(tmp_path, "--suite", "clue"), nothing)


def test_a_suite_without_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"use evaluate --suite zeroclue$"):
        train_suite(parse(tmp_path, "--suite", "zeroclue"), trained)


def test_plans_are_printed_together_and_nothing_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = parse(tmp_path, "--suite", "clue", "--dry-run")
    assert train_suite(args, lambda one: {"plan": {"steps": 7}}) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [run["plan"]["steps"] for run in printed["runs"]] == [7] * 9
    assert not (tmp_path / "suite.json").exists()
