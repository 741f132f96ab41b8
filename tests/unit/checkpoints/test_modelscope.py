"""Downloads from a stand-in of ModelScope on loopback: commits, checksums, resumed files, tokens, errors.

The stand-in answers as modelscope.cn does according to the official client (modelscope_hub 0.5.1), which can download
from it: paths, parameters, the envelope with Code, Data and Success, and the fields of a listing.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from huggingface_hub import constants

from service.checkpoints import modelscope
from service.checkpoints.checkpoint import resolve
from service.checkpoints.spec import parse_spec
from service.errors import CheckpointError, SettingError
from tests.checkpoints import make_checkpoint
from tests.sentence_folders import DenseOf, make_embedding_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "89abcdef0123456789abcdef0123456789abcdef"
REPO = "IDEA-CCNL/Erlangshen-Test-Similarity"
UNREACHABLE = "http://127.0.0.1:9"


class ModelScope(ThreadingHTTPServer):
    """A stand-in that holds one repository and records what is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.latest: dict[str, Any] = {"Id": "", "ShortId": COMMIT[:8]}
        self.served: list[tuple[str, str, str | None]] = []
        """File, revision and Range of each download."""
        self.tokens: set[str | None] = set()
        self.breaks_after: int | None = None
        self.redirect: str | None = None
        self.max_listed = modelscope.MAX_LISTED
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: ModelScope

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.server.tokens |= {self.headers.get("Authorization"), self.headers.get("Cookie")}
        if url.path == f"/api/v1/models/{REPO}/repo/files" and query["Revision"] in ("master", "v1", COMMIT):
            root = self.server.folder / query.get("Root", "")
            found = (root.rglob("*") if query["Recursive"] == "True" else root.iterdir()) if root.is_dir() else ()
            files = self._list(found)[: self.server.max_listed]
            data = {"Files": files, "IsVisual": True, "LatestCommitter": self.server.latest}
            self._send(200, json.dumps({"Code": 200, "Data": data, "Message": "", "Success": True}).encode())
        elif url.path == f"/api/v1/models/{REPO}/repo" and self.server.redirect:
            self.send_response(302)
            self.send_header("Location", f"{self.server.redirect}{self.path}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif url.path == f"/api/v1/models/{REPO}/repo":
            self._send_file(query["FilePath"], query["Revision"])
        else:
            self._send(404, json.dumps({"Code": 10010205001, "Message": "not found", "Success": False}).encode())

    def log_message(self, *_: object) -> None:
        """No-op: keeps the test's output clean."""

    def _list(self, found: Iterable[Path]) -> list[dict[str, Any]]:
        root = self.server.folder
        return [
            {
                "Name": file.name,
                "Path": str(file.relative_to(root)),
                "Type": "tree" if file.is_dir() else "blob",
                "Revision": COMMIT if file.name == "config.json" else OLDER,
                "CommittedDate": 1700000000 + (file.name == "config.json"),
                "Size": 0 if file.is_dir() else file.stat().st_size,
                "Sha256": "" if file.is_dir() else hashlib.sha256(file.read_bytes()).hexdigest(),
                "IsLFS": False,
            }
            for file in sorted(found)
        ]

    def _send_file(self, name: str, revision: str) -> None:
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.server.served.append((name, revision, wanted))
        self._send(206 if wanted else 200, (self.server.folder / name).read_bytes()[start:])

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.breaks_after is not None and b'"Code"' not in body and len(body) > self.server.breaks_after:
            body, self.server.breaks_after = body[: self.server.breaks_after], None
            self.close_connection = True
        self.wfile.write(body)


@contextmanager
def running(folder: Path) -> Iterator[ModelScope]:
    server = ModelScope(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelScope]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("MODELSCOPE_API_TOKEN", raising=False)
    folder = make_checkpoint(
        tmp_path / "made", kind="sequence-classification", num_layers=1, hidden_size=16, num_heads=2
    )
    (folder / "README.md").write_text("not needed")
    (folder / "pytorch_model.bin").write_bytes(b"not needed next to model.safetensors")
    with running(folder) as started:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", started.url)
        yield started


def test_only_the_needed_files_are_downloaded_and_then_cached(server: ModelScope, tmp_path: Path) -> None:
    path = modelscope.fetch(REPO, cache_dir=tmp_path / "cache")
    names = ["config.json", "model.safetensors", "vocab.txt"]
    assert sorted(name for name, _, _ in server.served) == names
    assert sorted(file.name for file in path.iterdir()) == names
    server.served.clear()
    assert modelscope.fetch(REPO, cache_dir=tmp_path / "cache") == path
    assert modelscope.fetch(REPO, cache_dir=tmp_path / "cache", offline=True) == path
    assert modelscope.fetch(REPO, cache_dir=tmp_path / "cache", endpoint=UNREACHABLE) == path
    assert modelscope.fetch(REPO, COMMIT, cache_dir=tmp_path / "cache", endpoint=UNREACHABLE) == path
    assert server.served == []


@pytest.mark.parametrize(
    ("latest", "commit"),
    [
        ({"Id": "f" * 40, "ShortId": "ffffffff"}, "f" * 40),
        ({"Id": "", "ShortId": OLDER[:8]}, OLDER),
        ({"Id": "", "ShortId": "11111111"}, COMMIT),
        (None, COMMIT),
    ],
)
def test_a_branch_is_resolved_to_its_commit(
    server: ModelScope, tmp_path: Path, latest: dict[str, Any], commit: str
) -> None:
    """In full, by its first characters, or as the latest commit of any file."""
    server.latest = latest
    checkpoint = resolve(parse_spec(f"pairs=ms://{REPO}"), cache_dir=tmp_path / "cache")
    assert checkpoint.commit == commit
    assert {revision for _, revision, _ in server.served} == {commit}


def test_a_model_of_modelscope_is_described_as_that_of_the_other_hub(server: ModelScope, tmp_path: Path) -> None:
    checkpoint = resolve(parse_spec(REPO, "modelscope"), cache_dir=tmp_path / "cache")
    assert (checkpoint.name, checkpoint.source) == ("Erlangshen-Test-Similarity", f"ms://{REPO}")
    assert checkpoint.tasks == ("similarity",)


def test_the_description_comes_without_weights(server: ModelScope, tmp_path: Path) -> None:
    path = modelscope.fetch(REPO, cache_dir=tmp_path / "cache", only_description=True)
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "vocab.txt"]


def test_the_files_of_modules_are_downloaded(server: ModelScope, tmp_path: Path) -> None:
    server.folder = make_embedding_model(tmp_path / "embedder", pooling=("cls",), dense=[DenseOf(4)])
    path = modelscope.fetch(REPO, cache_dir=tmp_path / "cache")
    assert (path / "1_Pooling" / "config.json").is_file()
    assert (path / "2_Dense" / "model.safetensors").is_file()


def limit_listings(server: ModelScope, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """With `limit` entries in an answer, and a folder that comes first and has more files than that."""
    monkeypatch.setattr(modelscope, "MAX_LISTED", limit)
    server.max_listed = limit
    (server.folder / "a_dataset").mkdir()
    for number in range(limit):
        (server.folder / "a_dataset" / str(number)).touch()


def test_a_repository_of_more_files_than_one_answer_lists_is_downloaded(
    server: ModelScope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub leaves the others out without a mark, and ignores page numbers."""
    server.folder = make_embedding_model(tmp_path / "embedder", pooling=("cls",), dense=[DenseOf(4)])
    server.latest = {"Id": COMMIT}
    limit_listings(server, monkeypatch, len(list(server.folder.iterdir())) + 2)
    path = modelscope.fetch(REPO, cache_dir=tmp_path / "cache")
    assert sorted(file.name for file in path.rglob("*.safetensors")) == ["model.safetensors", "model.safetensors"]
    assert (path / "1_Pooling" / "config.json").is_file()
    assert not (path / "a_dataset").exists()


def test_the_error_of_a_folder_of_more_files_than_one_answer_lists_says_so(
    server: ModelScope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.latest = {"Id": COMMIT}
    limit_listings(server, monkeypatch, 3)
    with pytest.raises(CheckpointError, match=r"no weights .* the hub lists at most 3000 files of a folder"):
        modelscope.fetch(REPO, cache_dir=tmp_path / "cache")


def test_the_commit_is_not_guessed_from_a_part_of_the_files(
    server: ModelScope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.latest = {"ShortId": "11111111"}
    limit_listings(server, monkeypatch, 3)
    with pytest.raises(CheckpointError, match="does not say which commit master is; name one: @COMMIT"):
        modelscope.fetch(REPO, cache_dir=tmp_path / "cache")


def test_a_download_goes_on_where_it_broke_off(server: ModelScope, tmp_path: Path) -> None:
    path = modelscope.fetch(REPO, cache_dir=tmp_path / "cache", only_description=True)
    server.breaks_after = 1000
    assert modelscope.fetch(REPO, cache_dir=tmp_path / "cache") == path
    assert ("model.safetensors", COMMIT, "bytes=1000-") in server.served
    assert (path / "model.safetensors").read_bytes() == (server.folder / "model.safetensors").read_bytes()


def test_a_file_with_another_checksum_is_not_taken(server: ModelScope, tmp_path: Path) -> None:
    path = modelscope.fetch(REPO, cache_dir=tmp_path / "cache", only_description=True)
    part = path / ".model.safetensors.part"
    part.write_bytes(b"x" * (server.folder / "model.safetensors").stat().st_size)
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not have the checksum"):
        modelscope.fetch(REPO, cache_dir=tmp_path / "cache")
    assert modelscope.fetch(REPO, cache_dir=tmp_path / "cache") == path


@pytest.mark.parametrize("name", ["../outside.json", "/etc/outside.json"])
def test_a_listing_cannot_write_outside_of_the_cache(tmp_path: Path, name: str) -> None:
    assert not modelscope.is_inside(name)


@pytest.mark.parametrize(("token_to_mirror", "seen"), [(False, {None}), (True, {"Bearer s", "m_session_id=s"})])
def test_the_token_goes_to_a_mirror_only_where_asked(
    server: ModelScope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token_to_mirror: bool, seen: set[str | None]
) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "s\n")  # as the file of a Secret has it
    modelscope.fetch(REPO, cache_dir=tmp_path / "cache", token_to_mirror=token_to_mirror)
    assert server.tokens == seen


def test_the_token_is_not_sent_to_the_storage_that_the_hub_leads_to(
    server: ModelScope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "s")
    with running(server.folder) as storage:
        server.redirect = storage.url
        modelscope.fetch(REPO, cache_dir=tmp_path / "cache", token_to_mirror=True)
        assert storage.served
        assert storage.tokens == {None}


@pytest.mark.parametrize(("repo", "revision"), [("IDEA-CCNL/nothing", None), (REPO, "gone")])
def test_the_error_of_an_unknown_repository_or_revision_names_it(
    server: ModelScope, tmp_path: Path, repo: str, revision: str | None
) -> None:
    with pytest.raises(CheckpointError, match=rf"ms://{repo}.*: .* has no such repository or revision \(a private"):
        modelscope.fetch(repo, revision, cache_dir=tmp_path / "cache")


def test_the_error_without_cache_and_network_names_endpoint_and_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", UNREACHABLE)
    with pytest.raises(CheckpointError, match=rf"{UNREACHABLE} \(MODELSCOPE_ENDPOINT\) failed .* check MODELSCOPE_END"):
        modelscope.fetch(REPO, cache_dir=tmp_path)


def test_a_server_that_is_not_modelscope_is_named_as_such(
    server: ModelScope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answer, "_list", lambda *_: [])
    with pytest.raises(CheckpointError, match="lists no files"):
        modelscope.fetch(REPO, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("text", "source", "revision"),
    [
        ("ms://A/b", "ms://A/b", None),
        ("x=ms://A/b@v1", "ms://A/b", "v1"),
        ("A/b@v1", "ms://A/b", "v1"),
        ("hf://A/b", "A/b", None),
        ("mini", "mini", None),
        ("./A/b", "./A/b", None),
    ],
)
def test_the_hub_of_a_source_is_its_own_or_that_of_the_setting(text: str, source: str, revision: str | None) -> None:
    spec = parse_spec(text, "modelscope")
    assert (spec.source, spec.revision) == (source, revision)


@pytest.mark.parametrize("text", ["ms://b", "ms://A/b/c", "ms://"])
def test_a_source_of_modelscope_has_two_parts(text: str) -> None:
    with pytest.raises(SettingError, match="wanted ms://ORG/NAME or ms://ORG/NAME@REVISION"):
        parse_spec(text)


def test_an_update_that_fails_leaves_what_the_branch_was(
    server: ModelScope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = modelscope.fetch(REPO, cache_dir=tmp_path / "cache")
    server.latest = {"Id": "f" * 40}

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(modelscope, "_receive", fail)
    assert modelscope.fetch(REPO, cache_dir=tmp_path / "cache") == path
    assert modelscope.fetch(REPO, cache_dir=tmp_path / "cache", offline=True) == path


def test_the_folder_is_absolute_also_where_the_cache_is_not(
    server: ModelScope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker process has another working directory."""
    monkeypatch.chdir(tmp_path)
    path = modelscope.fetch(REPO, cache_dir=Path("cache"))
    assert path.is_absolute()
    assert modelscope.fetch(REPO, cache_dir=Path("cache"), offline=True) == path
