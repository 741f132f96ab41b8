"""Suites: their tables, the summary of runs, and what is compared with the cards."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import SettingError
from service.tools.data.registry import load
from service.tools.suites import Score, suites, summarize, table_lines
from tests.support.benchmark_files import write_benchmarks

TASKS = [(name, task) for name, suite in suites().items() for task in suite.tasks]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"))


@pytest.mark.parametrize(("suite", "task"), TASKS)
def test_every_task_of_a_suite_is_read_in_the_layout_of_its_publisher(data: Path, suite: str, task: str) -> None:
    for split in ("train", "dev"):
        assert all(example.is_labelled for example in load(task, data, split)), split


@pytest.mark.parametrize("task", [task for name, task in TASKS if name in ("clue", "fewclue")])
def test_every_task_of_a_leaderboard_has_a_test_file_without_answers(data: Path, task: str) -> None:
    examples = load(task, data, "board")
    assert len({example.id for example in examples}) == len(examples) >= 4
    assert not any(example.is_labelled for example in examples)


@pytest.mark.parametrize("split", ["train", "dev"])
def test_every_few_shot_task_has_five_folds(data: Path, split: str) -> None:
    for task in suites()["fewclue"].tasks:
        assert [len(load(task, data, split, fold)) for fold in "01234"] == [4] * 5


def test_zero_shot_tasks_are_the_few_shot_ones_with_their_own_numbers() -> None:
    few, zero = suites()["fewclue"], suites()["zeroclue"]
    assert list(few.tasks) == list(zero.tasks)
    assert (few.tasks["fewclue/chid"].card, zero.tasks["fewclue/chid"].card) == (
        {"few-shot": 90.33},
        {"zero-shot": 89.4},
    )


@pytest.mark.parametrize("wanted", ["wsc", "cluewsc", "clue/cluewsc"])
def test_a_task_is_chosen_with_or_without_its_collection(wanted: str) -> None:
    assert list(suites()["clue"].choose([wanted])) == ["clue/cluewsc"]


def test_a_task_of_another_suite_is_refused() -> None:
    with pytest.raises(SettingError, match=r"^eprstmt: is no task of this suite; its tasks are clue/afqmc, "):
        suites()["clue"].choose(["eprstmt"])


def test_runs_of_a_task_have_a_mean_and_a_deviation() -> None:
    scores = [Score("fewclue/tnews", value, 10, "choice", str(fold)) for fold, value in enumerate((50.0, 52.0, 54.0))]
    [row] = summarize(suites()["fewclue"], scores, against_card=True)
    assert (row["runs"], row["mean"], row["sd"], row["published"], row["difference"]) == (3, 52.0, 2.0, 57.46, -5.46)


def test_a_zero_shot_score_is_not_compared_with_a_number_of_a_trained_model() -> None:
    scores = [Score("clue/tnews", 40.0, 10, form) for form in ("zero-shot",)]
    [row] = summarize(suites()["clue"], scores, against_card=True)
    assert (row["published"], row["difference"]) == (None, None)


@pytest.mark.parametrize(("form", "number"), [("head", 59.96), ("choice", 60.4)])
def test_a_score_is_compared_with_the_number_of_its_form(form: str, number: float) -> None:
    [row] = summarize(suites()["clue"], [Score("clue/tnews", 60.0, 10, form)], against_card=True)
    assert row["published"] == number


def test_several_tasks_have_a_mean_in_the_last_row() -> None:
    scores = [Score("clue/afqmc", 70.0, 10, "head"), Score("clue/csl", 80.0, 10, "head")]
    rows = summarize(suites()["clue"], scores, against_card=True)
    assert rows[-1] == {"task": "mean", "mean": 75.0, "published": 81.64, "difference": -6.64}
    assert table_lines(rows)[-1].split("\t")[0] == "mean"
