"""Downloads from a fake hub on loopback and from the cache, and the errors when neither has the files."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from huggingface_hub import constants

from service.checkpoints import hub
from service.checkpoints.checkpoint import describe, parse_spec, resolve
from service.checkpoints.files import weight_files
from service.errors import CheckpointError
from tests.checkpoints import make_checkpoint, write_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "IDEA-CCNL/Erlangshen-Test-Similarity"


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "made", kind="sequence-classification", num_layers=1, hidden_size=16, num_heads=2)


class Hub(ThreadingHTTPServer):
    """A fake hub that serves one folder and records the requested files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.served: list[str] = []
        super().__init__(("127.0.0.1", 0), HubRequest)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubRequest(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith(f"/api/models/{REPO}"):
            self._answer_api(path)
        elif path.startswith(f"/{REPO}/resolve/{COMMIT}/"):
            self._answer_file(path.rsplit("/", 1)[-1])
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def log_message(self, *_: object) -> None:
        """No-op: keeps the test's output clean."""

    def _answer_api(self, path: str) -> None:
        if path.endswith("/revision/gone"):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif "/tree/" in path:
            files = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _etag(file)}
                for file in sorted(self.server.folder.iterdir())
            ]
            self._send(200, json.dumps(files).encode(), {"Content-Type": "application/json"})
        else:
            siblings = [{"rfilename": file.name} for file in sorted(self.server.folder.iterdir())]
            info = {"id": REPO, "sha": COMMIT, "siblings": siblings}
            self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _answer_file(self, name: str) -> None:
        file = self.server.folder / name
        if self.command == "GET":
            self.server.served.append(name)
        self._send(200, file.read_bytes(), {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _etag(file: Path) -> str:
    return f"{file.name.encode().hex():0<40}"[:40]


@pytest.fixture
def hub_server(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    (classifier / "README.md").write_text("not needed")
    server = Hub(classifier)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_only_the_needed_files_are_downloaded_and_then_cached(hub_server: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    write_weights(hub_server.folder, {"a": torch.zeros(1)}, "bin")
    path = hub.fetch(REPO, cache_dir=cache, endpoint=hub_server.url)
    assert sorted(hub_server.served) == ["config.json", "model.safetensors", "vocab.txt"]
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "model.safetensors", "vocab.txt"]
    hub_server.served.clear()
    assert hub.fetch(REPO, "main", cache_dir=cache, endpoint=hub_server.url) == path
    assert hub.fetch(REPO, cache_dir=cache, offline=True) == path
    assert hub_server.served == []


def test_a_bin_is_downloaded_without_safetensors(hub_server: Hub, tmp_path: Path) -> None:
    (hub_server.folder / "model.safetensors").unlink()
    write_weights(hub_server.folder, {"a": torch.zeros(1)}, "bin")
    path = hub.fetch(REPO, cache_dir=tmp_path / "cache", endpoint=hub_server.url)
    assert weight_files(path) == (path / "pytorch_model.bin",)
    assert hub.fetch(REPO, cache_dir=tmp_path / "cache", offline=True) == path


def test_resolve_uses_the_cache_when_offline(hub_server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    hub.fetch(REPO, cache_dir=cache, endpoint=hub_server.url)
    checkpoint = resolve(parse_spec(f"pairs={REPO}@main"), cache_dir=cache, offline=True)
    assert (checkpoint.name, checkpoint.source, checkpoint.revision) == ("pairs", REPO, "main")
    assert (checkpoint.tasks, checkpoint.labels) == (("similarity",), ("不相似", "相似"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve(parse_spec(REPO), cache_dir=cache).path == checkpoint.path


def test_fetch_uses_the_cache_when_the_hub_is_unreachable(hub_server: Hub, tmp_path: Path) -> None:
    path = hub.fetch(REPO, cache_dir=tmp_path / "cache", endpoint=hub_server.url)
    assert hub.fetch(REPO, cache_dir=tmp_path / "cache", endpoint="http://127.0.0.1:9") == path


def test_a_repository_without_weights_is_an_error(hub_server: Hub, tmp_path: Path) -> None:
    (hub_server.folder / "model.safetensors").rename(hub_server.folder / "flax_model.msgpack")
    words = (
        rf"{REPO}: the repository holds no weights \(model\.safetensors, pytorch_model\.bin, \.\.\.\); "
        r"it holds README\.md, config\.json, flax_model\.msgpack, vocab\.txt$"
    )
    with pytest.raises(CheckpointError, match=words):
        hub.fetch(REPO, cache_dir=tmp_path / "cache", endpoint=hub_server.url)


def test_a_repository_with_the_config_of_google_is_downloaded(hub_server: Hub, tmp_path: Path) -> None:
    (hub_server.folder / "config.json").rename(hub_server.folder / "bert_config.json")
    path = hub.fetch(REPO, cache_dir=tmp_path / "cache", endpoint=hub_server.url)
    assert describe(path, "x").kind == "sequence-classification"


UNREACHABLE = "http://127.0.0.1:9"


@pytest.mark.parametrize("has_listing", [True, False])
@pytest.mark.parametrize("is_offline", [True, False])
def test_an_unfinished_download_is_reported_as_such(
    hub_server: Hub, tmp_path: Path, is_offline: bool, has_listing: bool
) -> None:
    cache = tmp_path / "cache"
    folder = hub.fetch(REPO, cache_dir=cache, endpoint=hub_server.url)
    (folder / "model.safetensors").unlink()
    if not has_listing:  # huggingface_hub before 2.0 kept none
        shutil.rmtree(folder.parents[1] / "trees")
    words = (
        rf"{REPO}: the cache holds config\.json, vocab\.txt, and no weights \(model\.safetensors, pytorch_model\.bin, "
        rf"\.\.\.\): an earlier download was not finished; {'offline mode is on' if is_offline else 'the hub cannot'}"
    )
    with pytest.raises(CheckpointError, match=words):
        hub.fetch(REPO, cache_dir=cache, offline=is_offline, endpoint=UNREACHABLE)
    assert hub.fetch(REPO, cache_dir=cache, endpoint=hub_server.url) == folder


@pytest.mark.parametrize("is_offline", [True, False])
def test_missing_shards_are_an_unfinished_download(hub_server: Hub, tmp_path: Path, is_offline: bool) -> None:
    names = [f"model-0000{index}-of-00002.safetensors" for index in (1, 2)]
    (hub_server.folder / "model.safetensors").rename(hub_server.folder / names[0])
    (hub_server.folder / names[1]).write_bytes(b"second")
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    (hub_server.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    folder = hub.fetch(REPO, cache_dir=tmp_path / "cache", endpoint=hub_server.url)
    (folder / names[1]).unlink()
    with pytest.raises(CheckpointError, match=f"and no {names[1]}: an earlier download was not finished"):
        hub.fetch(REPO, cache_dir=tmp_path / "cache", offline=is_offline, endpoint=UNREACHABLE)


def test_a_cache_without_files_that_are_not_needed_is_complete(hub_server: Hub, tmp_path: Path) -> None:
    """As one that an earlier version filled, which downloaded fewer files."""
    (hub_server.folder / "tokenizer_config.json").write_text("{}")
    folder = hub.fetch(REPO, cache_dir=tmp_path / "cache", endpoint=hub_server.url)
    (folder / "tokenizer_config.json").unlink()
    assert hub.fetch(REPO, cache_dir=tmp_path / "cache", offline=True) == folder


@pytest.mark.parametrize("error", [ImportError("the package socksio is missing"), ValueError("Invalid proxy URL")])
def test_an_error_of_a_library_is_passed_on_in_its_own_words_unless_the_cache_is_complete(
    hub_server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    folder = hub.fetch(REPO, cache_dir=tmp_path / "cache", endpoint=hub_server.url)
    download = hub.snapshot_download

    def fail(*arguments: object, local_files_only: bool, **others: object) -> str:
        if not local_files_only:
            raise error
        return str(download(*arguments, local_files_only=True, **others))

    monkeypatch.setattr(hub, "snapshot_download", fail)
    monkeypatch.setenv("ALL_PROXY", "socks5://user:secret@127.0.0.1:7890")
    assert hub.fetch(REPO, cache_dir=tmp_path / "cache") == folder
    with pytest.raises(CheckpointError) as caught:
        hub.fetch(REPO, cache_dir=tmp_path / "empty")
    assert (
        f"the download failed ({type(error).__name__}: {error}); the environment names a proxy" in caught.value.detail
    )
    assert "ALL_PROXY" in caught.value.detail
    assert "secret" not in caught.value.detail


def test_the_error_of_another_revision_names_those_in_the_cache(hub_server: Hub, tmp_path: Path) -> None:
    hub.fetch(REPO, cache_dir=tmp_path / "cache", endpoint=hub_server.url)
    words = rf"{REPO}@v9: .* not in the cache \(of this repository it holds main\), and offline mode is on"
    with pytest.raises(CheckpointError, match=words):
        hub.fetch(REPO, "v9", cache_dir=tmp_path / "cache", offline=True)


@pytest.mark.parametrize(
    ("repo", "revision", "words"),
    [
        ("IDEA-CCNL/nothing", None, "IDEA-CCNL/nothing: neither a local directory nor a repository of the hub"),
        (REPO, "gone", f"{REPO}@gone: the repository has no such revision"),
        ("too/many/parts", None, "neither a local directory nor a valid repository id"),
    ],
)
def test_the_error_of_an_unknown_repository_or_revision_names_it(
    hub_server: Hub, tmp_path: Path, repo: str, revision: str | None, words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        hub.fetch(repo, revision, cache_dir=tmp_path / "cache", endpoint=hub_server.url)


def test_the_error_without_cache_and_network_has_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="no local directory, not in the cache, and offline mode is on"):
        resolve(parse_spec(REPO), cache_dir=tmp_path, offline=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(CheckpointError, match="not in the cache, and the hub cannot be reached"):
        hub.fetch(REPO, cache_dir=tmp_path, endpoint="http://127.0.0.1:9")
