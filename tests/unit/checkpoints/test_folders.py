"""Local folders: names of models, links, folders of the hub's cache, and the errors for what is no folder."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from service.checkpoints.checkpoint import resolve
from service.checkpoints.folders import find, name_of
from service.checkpoints.spec import ModelSpec, parse_spec
from service.errors import CheckpointError
from tests.checkpoints import FileFormat, make_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "89abcdef0123456789abcdef0123456789abcdef"
REPO = "IDEA-CCNL/Erlangshen-Test-Similarity"


def make_cached(cache: Path, commit: str = COMMIT, repo: str = REPO, file_format: FileFormat = "safetensors") -> Path:
    """A repository in the layout of the hub's cache, whose files are links to blobs; returns its folder."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    made = make_checkpoint(
        cache / "made",
        kind="sequence-classification",
        num_layers=1,
        hidden_size=16,
        num_heads=2,
        file_format=file_format,
    )
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir(exist_ok=True)
    for file in made.iterdir():
        blob = folder / "blobs" / f"{commit}-{file.name.encode().hex()}"
        file.rename(blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    made.rmdir()
    return folder


def set_ref(folder: Path, name: str, commit: str) -> None:
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / name).write_text(commit)


def test_a_link_keeps_its_own_name_and_leads_to_the_files_of_its_target(tmp_path: Path) -> None:
    target = make_checkpoint(tmp_path / "v2026-11-28", num_layers=1, hidden_size=16, num_heads=2)
    (tmp_path / "当前").symlink_to(target)
    (tmp_path / "again").symlink_to("当前")
    for link in ("当前", "again", "当前/"):
        checkpoint = resolve(parse_spec(f"{tmp_path}/{link}"))
        assert (checkpoint.name, checkpoint.path) == (link.rstrip("/"), target)


def test_a_link_to_a_known_model_has_its_labels(tmp_path: Path) -> None:
    target = tmp_path / "Erlangshen-Similarity"
    make_checkpoint(target, kind="sequence-classification", num_layers=1, hidden_size=16, num_heads=2)
    (tmp_path / "current").symlink_to(target)
    checkpoint = resolve(parse_spec(str(tmp_path / "current")))
    assert (checkpoint.labels, checkpoint.tasks) == (("不相似", "相似"), ("similarity",))


def test_relative_paths_are_named_by_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "模型" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "模型")
    monkeypatch.setenv("HOME", str(tmp_path / "模型"))
    for source in (".", "./", "inner/..", "../模型", "~"):
        assert name_of(source) == "模型"
    for source in ("inner", "./inner", "inner/", "./inner/.", "../模型/inner", "~/inner"):
        assert name_of(source) == "inner"


@pytest.mark.parametrize("file_format", ["bin", "safetensors"])
@pytest.mark.parametrize("inner", ["", "/", "/snapshots", f"/snapshots/{COMMIT}", f"/snapshots/{COMMIT}/"])
def test_a_folder_of_the_hub_cache_is_named_and_labelled_as_its_repository(
    tmp_path: Path, inner: str, file_format: FileFormat
) -> None:
    folder = make_cached(tmp_path, file_format=file_format)
    set_ref(folder, "main", COMMIT)
    checkpoint = resolve(parse_spec(f"{folder}{inner}"), offline=True)
    assert checkpoint.name == "Erlangshen-Test-Similarity"
    assert checkpoint.path == folder / "snapshots" / COMMIT
    assert checkpoint.labels == ("不相似", "相似")


def test_the_snapshot_as_working_directory_and_a_link_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_cached(tmp_path, repo="bert-base-chinese")
    monkeypatch.chdir(folder / "snapshots" / COMMIT)
    assert parse_spec(".").name == "bert-base-chinese"
    monkeypatch.chdir(folder / "snapshots")
    assert parse_spec(COMMIT).name == "bert-base-chinese"
    (tmp_path / "current").symlink_to(folder)
    checkpoint = resolve(parse_spec(str(tmp_path / "current")))
    assert (checkpoint.name, checkpoint.path) == ("current", folder / "snapshots" / COMMIT)


def test_a_cached_repository_leads_to_the_snapshot_of_its_revision(tmp_path: Path) -> None:
    folder = make_cached(tmp_path)
    make_cached(tmp_path, OLDER)
    snapshots = folder / "snapshots"
    with pytest.raises(CheckpointError) as caught:
        find(str(folder))
    words = "several snapshots and no refs/main; to serve what is there: "
    _, one, _, _, two = shlex.split(caught.value.detail.partition(words)[2])
    assert [one, two] == [str(snapshots / COMMIT), str(snapshots / OLDER)]
    set_ref(folder, "main", COMMIT)
    set_ref(folder, "v1", OLDER)
    assert find(str(folder)) == find(str(folder), "main") == snapshots / COMMIT
    assert find(str(folder), "v1") == find(str(folder), OLDER) == snapshots / OLDER
    assert parse_spec(f"{folder}@v1") == ModelSpec("Erlangshen-Test-Similarity", str(folder), "v1")
    with pytest.raises(CheckpointError, match=f"v9 is not among its snapshots; `hf download {REPO}` fetches it"):
        find(str(folder), "v9")


def test_the_origin_of_a_cached_repository_stays_when_its_snapshot_changes(tmp_path: Path) -> None:
    """Weights converted from the older snapshot are replaced in the weight cache, and do not pile up."""
    folder = make_cached(tmp_path)
    make_cached(tmp_path, OLDER)
    origins = []
    for commit in (OLDER, COMMIT):
        set_ref(folder, "main", commit)
        origins.append(resolve(parse_spec(str(folder))).origin)
        snapshot = folder / "snapshots" / commit
        assert resolve(parse_spec(str(snapshot))).origin == str(snapshot)
    assert origins == [f"{folder}@main"] * 2


def test_a_cached_repository_without_a_snapshot_is_an_unfinished_download(tmp_path: Path) -> None:
    folder = tmp_path / "models--IDEA-CCNL--X"
    (folder / "blobs").mkdir(parents=True)
    words = "without a snapshot: an earlier download was not finished; `hf download IDEA-CCNL/X` fetches it"
    with pytest.raises(CheckpointError, match=words):
        find(str(folder))


def test_a_cached_folder_without_weights_is_an_unfinished_download(tmp_path: Path) -> None:
    folder = make_cached(tmp_path)
    (folder / "snapshots" / COMMIT / "model.safetensors").unlink()
    (folder / "snapshots" / COMMIT / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"it holds vocab\.txt: an earlier download was not finished$"):
        resolve(parse_spec(str(folder)))


def test_a_revision_of_a_plain_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(CheckpointError, match="model: a folder has no revisions; leave out @main"):
        resolve(parse_spec(f"{tmp_path}/model@main"))


def test_the_error_of_a_file_leads_to_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_checkpoint(tmp_path / "情感 分类", num_layers=1)
    wanted = "a file; wanted the folder of the checkpoint: --model "
    monkeypatch.chdir(model)
    for source in (str(model / "model.safetensors"), "config.json", "./vocab.txt"):
        with pytest.raises(CheckpointError) as caught:
            resolve(ModelSpec("x", source))
        assert shlex.split(caught.value.detail.partition(wanted)[2]) == [str(model)]


def test_the_error_of_no_folder_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(b"PK")
    (tmp_path / "dangling").symlink_to("v1")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "sentiment").mkdir()
    for name, words in {
        "model.zip": "a file; unpack it, and give the folder",
        "dangling": "a link to v1, which is not there",
        "sentimant": f"no such directory; did you mean {tmp_path}/sentiment?",
        "x" * 300: "cannot be opened: File name too long",
    }.items():
        with pytest.raises(CheckpointError) as caught:
            find(str(tmp_path / name))
        assert words in caught.value.detail
    with pytest.raises(CheckpointError, match="circle"):
        find(str(tmp_path / "circle"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_the_error_of_a_folder_without_permission_has_the_reason(tmp_path: Path) -> None:
    inner = tmp_path / "locked" / "model"
    inner.mkdir(parents=True)
    inner.parent.chmod(0)
    try:
        with pytest.raises(CheckpointError, match="cannot be opened: Permission denied"):
            find(str(inner))
    finally:
        inner.parent.chmod(0o700)
