"""Uploads: exactly the files of the model, to which revision, what is refused, and no token in any message."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

from service import cli
from service.checkpoints.checkpoint import resolve
from service.checkpoints.spec import parse_spec
from service.errors import SettingError, StartupError
from service.tools.export import publish
from service.tools.export.publish import Upload, plan_upload, upload
from tests.adapters import make_adapter
from tests.checkpoints import make_checkpoint
from tests.sentence_folders import make_embedding_model

SMALL: dict[str, Any] = {"num_layers": 1, "hidden_size": 16, "num_heads": 2}
TOKEN = "hf_abcdefghijklmnop"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The output of a training: a model, and the records of the run."""
    folder = make_checkpoint(tmp_path / "run", kind="sequence-classification", **SMALL)
    (folder / "README.md").write_text("# card\n", encoding="utf-8")
    (folder / "run.json").write_text("{}", encoding="utf-8")
    (folder / ".run.lock").touch()
    (folder / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    (folder / "checkpoints" / "checkpoint-3" / "model.safetensors").touch()
    return folder


def plan(folder: Path, target: publish.Target = "hub", revision: str | None = None) -> Upload:
    return plan_upload(resolve(parse_spec(str(folder))), target, "me/news", revision, is_private=False)


def paths(plan: Upload) -> list[str]:
    return [file.path for file in plan.files]


def test_the_files_of_the_model_are_uploaded_and_no_records(run: Path) -> None:
    assert paths(plan(run)) == ["README.md", "config.json", "model.safetensors", "vocab.txt"]


def test_the_modules_of_an_embedding_model_are_uploaded(tmp_path: Path) -> None:
    folder = make_embedding_model(tmp_path, pooling=("cls",))
    assert {"modules.json", "1_Pooling/config.json"} <= set(paths(plan(folder)))


def test_a_card_is_made_where_there_is_none(run: Path) -> None:
    (run / "README.md").unlink()
    card = next(file for file in plan(run).files if file.path == "README.md")
    assert card.source is None
    assert "pipeline_tag: text-classification" in card.text
    assert card.num_bytes == len(card.text.encode())


def test_the_revision_is_the_default_of_the_hub_or_that_of_the_flag(run: Path) -> None:
    assert [plan(run).revision, plan(run, "modelscope").revision, plan(run, revision="v2").revision] == [
        "main",
        "master",
        "v2",
    ]


def test_an_adapter_whose_base_others_lack_is_refused(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "news", make_checkpoint(tmp_path / "base", **SMALL))
    with pytest.raises(SettingError, match=r"which others do not have; upload the merged model: .* --to folder"):
        plan(adapter)


def test_an_adapter_of_a_hub_base_is_uploaded_alone(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", **SMALL)
    adapter = make_adapter(tmp_path / "news", base, base_model_name_or_path="org/base")
    found = plan_upload(resolve(parse_spec(f"{adapter}+base={base}")), "hub", "me/news", None, is_private=False)
    assert paths(found) == ["adapter_config.json", "adapter_model.safetensors", "README.md"]
    assert "base_model: org/base" in found.files[-1].text


def test_a_dry_run_lists_files_sizes_and_revision_without_a_network(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "upload", None)
    assert cli.main(["export", str(run), "--to", "modelscope", "--repo", "me/news", "--dry-run"]) == 0
    printed = capsys.readouterr()
    listed = json.loads(printed.out)
    assert (listed["repository"], listed["revision"], listed["dry_run"]) == ("me/news", "master", True)
    assert {file["path"]: file["bytes"] for file in listed["files"]} == {
        name: (run / name).stat().st_size for name in ("README.md", "config.json", "model.safetensors", "vocab.txt")
    }
    assert "to me/news@master (modelscope)" in printed.err


class FakeHub:
    """Takes the place of `HfApi`; it lists what it is given."""

    calls: list[tuple[Any, ...]]

    def __init__(self, endpoint: str) -> None:
        type(self).calls = [("endpoint", endpoint)]

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create", repo, private, exist_ok))

    def create_branch(self, repo: str, *, branch: str, exist_ok: bool) -> None:
        self.calls.append(("branch", repo, branch, exist_ok))

    def upload_folder(self, *, repo_id: str, folder_path: Path, revision: str, commit_message: str) -> Any:
        names = sorted(str(path.relative_to(folder_path)) for path in folder_path.rglob("*") if path.is_file())
        self.calls.append(("upload", repo_id, revision, names))
        return SimpleNamespace(commit_url="https://hub/commit/1")


def test_the_hub_gets_the_listed_files_on_the_revision(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "get_token", lambda: TOKEN)
    monkeypatch.setattr(publish, "HfApi", FakeHub)
    listed = plan(run, revision="v2")
    assert upload(listed) == "https://hub/commit/1"
    assert FakeHub.calls == [
        ("endpoint", "https://huggingface.co"),
        ("create", "me/news", False, True),
        ("branch", "me/news", "v2", True),
        ("upload", "me/news", "v2", sorted(paths(listed))),
    ]


def test_a_failed_upload_has_the_reason_and_no_token(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(FakeHub):
        def create_repo(self, repo: str, **_: Any) -> None:
            raise OSError(f"403 for {repo} with Bearer {TOKEN}")

    monkeypatch.setattr(publish, "get_token", lambda: TOKEN)
    monkeypatch.setattr(publish, "HfApi", Refusing)
    with pytest.raises(StartupError) as caught:
        upload(plan(run))
    assert "the upload failed (OSError: 403 for me/news with Bearer ***)" in caught.value.detail
    assert TOKEN not in caught.value.detail
    assert caught.value.__suppress_context__


def test_an_upload_without_a_token_says_how_to_log_in(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "get_token", lambda: None)
    with pytest.raises(StartupError, match="log in with `hf auth login`, or set HF_TOKEN"):
        upload(plan(run))


@pytest.mark.parametrize(("target", "variable"), [("hub", "HF_ENDPOINT"), ("modelscope", "MODELSCOPE_ENDPOINT")])
def test_a_mirror_gets_an_upload_and_its_token_only_where_asked(
    run: Path, monkeypatch: pytest.MonkeyPatch, target: publish.Target, variable: str
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://hf-mirror.example")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "https://ms-mirror.example")
    monkeypatch.setattr(publish, "get_token", lambda: TOKEN)
    monkeypatch.setattr(publish, "HfApi", FakeHub)
    monkeypatch.setattr(publish, "find_spec", lambda name: name)
    words = rf"-mirror\.example \({variable}\) is not the https address of the hub, .* unset {variable}, or add --token"
    with pytest.raises(StartupError, match=words):
        upload(plan(run, target))
    if target == "hub":
        upload(plan(run, target), token_to_mirror=True)
        assert FakeHub.calls[0] == ("endpoint", "https://hf-mirror.example")


def test_modelscope_gets_the_listed_files(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    class FakeModelScope:
        def __init__(self, endpoint: str) -> None:
            calls.append(("endpoint", endpoint))

        def repo_exists(self, *arguments: str) -> bool:
            return False

        def create_repo(self, *arguments: str, visibility: str) -> None:
            calls.append(("create", *arguments, visibility))

        def upload_folder(self, repo: str, kind: str, folder: Path, *, revision: str, **_: Any) -> None:
            calls.append(("upload", repo, kind, revision, sorted(path.name for path in folder.iterdir())))

    module = ModuleType("modelscope_hub.api")
    module.HubApi = FakeModelScope  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelscope_hub.api", module)
    monkeypatch.setattr(publish, "find_spec", lambda name: module)
    listed = plan(run, "modelscope")
    assert upload(listed) == "https://modelscope.cn/models/me/news"
    assert calls == [
        ("endpoint", "https://modelscope.cn"),
        ("create", "me/news", "model", "public"),
        ("upload", "me/news", "model", "master", sorted(paths(listed))),
    ]


def test_a_missing_sdk_names_the_line_that_installs_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "find_spec", lambda name: None)
    with pytest.raises(StartupError, match=r"--to modelscope needs modelscope_hub: .*pip install modelscope_hub=="):
        upload(plan(run, "modelscope"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--to", "hub"], "--to hub: needs --repo ORG/NAME"),
        (["--to", "hub", "--repo", "news"], "--repo news: wanted ORG/NAME"),
        (["--to", "onnx"], "--to onnx: needs --output DIR"),
        (["--to", "folder", "--output", "out", "--repo", "a/b"], "--repo: not with --to folder"),
        (["--to", "onnx", "--output", "out", "--token-to-mirror"], "--token-to-mirror: not with --to onnx"),
        (["--to", "folder", "--output", "out", "--dry-run"], "--dry-run: not with --to folder"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    run: Path, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(run), *flags]) == 2
    assert words in capsys.readouterr().err
