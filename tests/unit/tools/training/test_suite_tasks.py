"""Every task of every suite becomes rows in each form that it has, for a small checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.checkpoints.checkpoint import describe
from service.errors import SettingError
from service.tasks.text_model import TextModel
from service.tools.suites import suites
from service.tools.training.run_data import HELD_OUT, Selection
from service.tools.training.samples import Samples
from service.tools.training.session import Request, prepare
from tests.checkpoints import make_checkpoint
from tests.support.benchmark_files import write_benchmarks

CHOICES_ONLY = ("clue/chid", "clue/c3", "fewclue/chid")
"""Each example has candidates of its own, and there is no encoding of a classifier with shared classes."""
HEADS_ONLY = ("sts-b-graded",)
TASKS = list(dict.fromkeys(task for suite in suites().values() if suite.is_trained for task in suite.tasks))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("suites")
    return write_benchmarks(folder / "data"), make_checkpoint(folder / "start")


def request(folders: tuple[Path, Path], task: str, form: str, **selection: str) -> Request:
    data, start = folders
    values = {"precision": "float32"}
    chosen = Selection(task, data, **selection)  # type: ignore[arg-type]
    return Request(chosen, str(start), data / "out", form=form, wording="mini", values=values)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", [task for task in TASKS if task not in HEADS_ONLY])
def test_a_task_is_a_choice(folders: tuple[Path, Path], task: str) -> None:
    session = prepare(request(folders, task, "choice"), 0)
    samples = Samples(TextModel.load(describe(folders[1], "start")), session.problem, session.data.train, 512)
    assert len(samples) > 0
    assert all(sample.target < len(sample.encoding.blocks) for sample in samples.samples)


@pytest.mark.parametrize("task", [task for task in TASKS if task not in CHOICES_ONLY])
def test_a_task_is_read_by_a_classifier(folders: tuple[Path, Path], task: str) -> None:
    session = prepare(request(folders, task, "head"), 0)
    samples = Samples(TextModel.load(describe(folders[1], "start")), session.problem, session.data.train, 512)
    assert session.problem.labels or session.problem.target == "number"
    assert not any(sample.encoding.blocks for sample in samples.samples)


@pytest.mark.parametrize("task", CHOICES_ONLY)
def test_a_task_with_candidates_of_its_own_is_no_classification(folders: tuple[Path, Path], task: str) -> None:
    with pytest.raises(SettingError, match="--form head: each example has options of its own"):
        prepare(request(folders, task, "head"), 0)


def test_the_options_of_the_authors_order_keep_their_answers(folders: tuple[Path, Path]) -> None:
    data, start = folders
    ordered = prepare(Request(Selection("clue/iflytek", data), str(start), data / "out", "choice", "upstream"), 0)
    plain = prepare(Request(Selection("clue/iflytek", data), str(start), data / "out", "choice", "mini"), 0)
    assert ordered.problem.labels == ("银行", "社区服务", "打车")
    assert [one.options[one.answer] for one in ordered.data.dev] == [one.options[one.answer] for one in plain.data.dev]
    assert ordered.data.read.report.class_counts == plain.data.read.report.class_counts


def test_a_fold_may_be_measured_on_the_others(folders: tuple[Path, Path]) -> None:
    session = prepare(request(folders, "fewclue/bustm", "choice", fold="1", test=HELD_OUT), 0)
    assert session.data.test
    assert session.identity()["data"]["test"] != session.identity()["data"]["dev"]
