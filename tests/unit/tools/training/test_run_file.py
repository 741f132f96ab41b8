"""The identity of a run: the same one resumes, another one is refused by the first field that differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.errors import SettingError
from service.tools.data.converters import Example
from service.tools.training.run_file import digest_examples, find_runs, first_difference, lock, open_run, read_run

IDENTITY = {"data": {"source": "a.csv", "train": "12"}, "form": "head", "learning_rate": 2e-5}


def test_a_new_run_has_no_history(tmp_path: Path) -> None:
    assert open_run(tmp_path, IDENTITY, overwrite=False).history == []


def test_the_same_identity_goes_on_with_the_history(tmp_path: Path) -> None:
    run = open_run(tmp_path, IDENTITY, overwrite=False)
    run.log(10, {"dev": {"accuracy": 0.5}})
    assert open_run(tmp_path, IDENTITY, overwrite=False).history == [{"step": 10, "dev": {"accuracy": 0.5}}]


def test_another_identity_is_refused_with_the_field_that_differs(tmp_path: Path) -> None:
    open_run(tmp_path, IDENTITY, overwrite=False).write()
    other = IDENTITY | {"learning_rate": 1e-3}
    with pytest.raises(SettingError, match=r"learning_rate is 2e-05 there, 0.001 now; .* --overwrite"):
        open_run(tmp_path, other, overwrite=False)


def test_other_data_is_refused(tmp_path: Path) -> None:
    open_run(tmp_path, IDENTITY, overwrite=False).write()
    other = IDENTITY | {"data": {"source": "a.csv", "train": "13"}}
    with pytest.raises(SettingError, match=r'data.train is "12" there, "13" now'):
        open_run(tmp_path, other, overwrite=False)


def test_overwrite_removes_the_run_and_no_other_file(tmp_path: Path) -> None:
    open_run(tmp_path, IDENTITY, overwrite=False).write()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    open_run(tmp_path, IDENTITY | {"form": "choice"}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_with_a_model_of_unknown_origin_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SettingError, match=r"has config.json, but no run.json"):
        open_run(tmp_path, IDENTITY, overwrite=False)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 2}', '{"version": 1}'])
def test_a_record_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(SettingError, match="is no record of a run"):
        read_run(tmp_path)


def test_a_resumed_run_replaces_what_was_logged_after_its_checkpoint(tmp_path: Path) -> None:
    run = open_run(tmp_path, IDENTITY, overwrite=False)
    for step in (10, 20, 30):
        run.log(step, {"dev": {}})
    run.log(20, {"dev": {"accuracy": 1.0}})
    assert [entry["step"] for entry in run.history] == [10, 20]


def test_run_json_can_be_read_by_everyone(tmp_path: Path) -> None:
    open_run(tmp_path, IDENTITY, overwrite=False).write()
    assert (tmp_path / "run.json").stat().st_mode & 0o777 == 0o644
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "running"


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    with lock(tmp_path), pytest.raises(SettingError, match="another process trains into it"), lock(tmp_path):
        pass


def test_an_output_that_cannot_be_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match=r"--output .*file"), lock(tmp_path / "file"):
        pass


def test_the_digest_changes_with_an_answer_and_the_order() -> None:
    one, two = (Example("classify", (text,), ("好", "差"), 0) for text in "甲乙")
    other = Example("classify", ("甲",), ("好", "差"), 1)
    assert len({digest_examples(each) for each in ([one, two], [two, one], [other, two])}) == 3


def test_a_missing_field_is_a_difference() -> None:
    assert first_difference({"a": 1}, {"a": 1, "b": 2}) == ("b", None, 2)


def test_runs_are_found_below_a_folder(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        open_run(tmp_path / name, IDENTITY, overwrite=False).write()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "run.json").write_text("not ours")
    assert [folder.name for folder, _ in find_runs([tmp_path])] == ["a", "b"]
