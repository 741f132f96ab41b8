"""Checkpoints of a run: which are whole, which are kept, where a run goes on."""

from __future__ import annotations

import json
from pathlib import Path

from service.tools.training import resuming


def make(folder: Path, step: int, *, is_whole: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", resuming.STATE):
        (checkpoint / name).write_text('{"best_model_checkpoint": null}')
        (checkpoint / name).chmod(0o600)
    if is_whole:
        resuming.mark_complete(checkpoint)
    return checkpoint


def test_a_run_goes_on_at_its_newest_checkpoint(tmp_path: Path) -> None:
    make(tmp_path, 9)
    newest = make(tmp_path, 10)
    assert resuming.find_start(tmp_path) == (newest, [])


def test_an_unfinished_checkpoint_is_set_aside_and_the_one_before_used(tmp_path: Path) -> None:
    before = make(tmp_path, 10)
    make(tmp_path, 20, is_whole=False)
    start, broken = resuming.find_start(tmp_path)
    assert start == before
    assert [path.name for path in broken] == ["broken-checkpoint-20"]


def test_a_cut_file_makes_a_checkpoint_broken(tmp_path: Path) -> None:
    before = make(tmp_path, 10)
    (make(tmp_path, 20) / "model.safetensors").write_text("")
    assert resuming.find_start(tmp_path)[0] == before


def test_a_second_broken_checkpoint_of_the_same_step_gets_another_name(tmp_path: Path) -> None:
    for _ in range(2):
        make(tmp_path, 20, is_whole=False)
        resuming.find_start(tmp_path)
    assert (tmp_path / "broken-checkpoint-20.2").is_dir()


def test_files_of_a_checkpoint_can_be_read_by_everyone(tmp_path: Path) -> None:
    assert {file.stat().st_mode & 0o777 for file in make(tmp_path, 1).iterdir()} == {0o644}


def test_two_newest_checkpoints_are_kept_and_the_weights_of_the_best(tmp_path: Path) -> None:
    best, _, *_ = (make(tmp_path, step) for step in (10, 20, 30, 40))
    make(tmp_path, 5)
    resuming.prune(tmp_path, best)
    assert [path.name for path in resuming.checkpoints_of(tmp_path)] == [
        "checkpoint-40",
        "checkpoint-30",
        "checkpoint-10",
    ]
    assert not (best / "optimizer.pt").exists()
    assert resuming.is_complete(best)
    assert not resuming.can_resume(best)


def test_a_moved_folder_finds_its_best_checkpoint(tmp_path: Path) -> None:
    best, newest = make(tmp_path, 10), make(tmp_path, 20)
    (newest / resuming.STATE).write_text(json.dumps({"best_model_checkpoint": "/elsewhere/checkpoint-10"}))
    resuming.locate_best(newest)
    assert json.loads((newest / resuming.STATE).read_text())["best_model_checkpoint"] == str(best)
    assert resuming.is_complete(newest)
