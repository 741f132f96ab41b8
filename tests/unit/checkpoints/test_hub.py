"""Downloads from a fake hub on loopback and from the cache, and the errors when neither has the files."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
from huggingface_hub import constants

from service.checkpoints import endpoints, hub, repository
from service.checkpoints.checkpoint import describe, resolve
from service.checkpoints.files import weight_files
from service.checkpoints.spec import parse_spec
from service.errors import CheckpointError
from tests.checkpoints import FileFormat, make_checkpoint, write_weights
from tests.sentence_folders import DenseOf, make_embedding_model, write_json

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
        self.tokens: set[str | None] = set()
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
        self.server.tokens.add(self.headers.get("Authorization"))
        if path.startswith(f"/api/models/{REPO}"):
            self._answer_api(path)
        elif path.startswith(f"/{REPO}/resolve/{COMMIT}/"):
            self._answer_file(path.removeprefix(f"/{REPO}/resolve/{COMMIT}/"))
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def log_message(self, *_: object) -> None:
        """No-op: keeps the test's output clean."""

    def _answer_api(self, path: str) -> None:
        if path.endswith("/revision/gone"):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif "/tree/" in path:
            files = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": _etag(file)}
                for name, file in self._files()
            ]
            self._send(200, json.dumps(files).encode(), {"Content-Type": "application/json"})
        else:
            siblings = [{"rfilename": name} for name, _ in self._files()]
            info = {"id": REPO, "sha": COMMIT, "siblings": siblings}
            self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _files(self) -> list[tuple[str, Path]]:
        """Every file of the folder, also in folders inside of it, by its path."""
        files = sorted(file for file in self.server.folder.rglob("*") if file.is_file())
        return [(str(file.relative_to(self.server.folder)), file) for file in files]

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
    return hashlib.sha1(str(file).encode(), usedforsecurity=False).hexdigest()


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


def test_a_download_logs_the_commit_and_draws_nothing_without_a_terminal(
    hub_server: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "service")
    hub.fetch(REPO, cache_dir=tmp_path / "cache", endpoint=hub_server.url)
    [resolved] = [record for record in caplog.records if record.message == "revision resolved"]
    assert vars(resolved)["commit"] == COMMIT
    assert capfd.readouterr().err == ""


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


def test_the_folder_is_absolute_also_where_the_cache_is_not(
    hub_server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = hub.fetch(REPO, cache_dir=Path("cache"), endpoint=hub_server.url)
    assert path.is_absolute()
    assert hub.fetch(REPO, cache_dir=Path("cache"), offline=True) == path


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


# embedding models

SETTINGS = {"prompts": {"query": "query: "}}


def become(folder: Path, **more: Any) -> Path:
    """Makes an embedding model of the folder of the hub."""
    shutil.rmtree(folder)
    made = make_embedding_model(folder, pooling=("cls",), settings=SETTINGS, transformer={"max_seq_length": 77}, **more)
    (made / "onnx").mkdir()
    (made / "onnx" / "model.onnx").write_bytes(b"not needed")
    (made / "checkpoint-9").mkdir()
    shutil.copy(made / "modules.json", made / "checkpoint-9" / "model.safetensors")
    return made


@pytest.mark.parametrize("subfolder", ["", "0_Transformer"])
@pytest.mark.parametrize("file_format", ["safetensors", "bin"])
@pytest.mark.parametrize("dense_format", ["safetensors", "bin"])
def test_the_files_of_the_modules_are_downloaded(
    hub_server: Hub, tmp_path: Path, dense_format: FileFormat, file_format: FileFormat, subfolder: str
) -> None:
    dense = [DenseOf(4, file_format=dense_format)]
    made = become(hub_server.folder, dense=dense, normalize=True, file_format=file_format, subfolder=subfolder)
    cache = tmp_path / "cache"
    path = hub.fetch(REPO, cache_dir=cache, endpoint=hub_server.url)
    assert not [name for name in hub_server.served if name.startswith(("onnx", "checkpoint"))]
    ours, wanted = describe(path, "m").embedding, describe(made, "m").embedding
    assert ours is not None
    assert wanted is not None
    assert replace(ours, dense=()) == replace(wanted, dense=())
    assert weight_files(path / "2_Dense")
    assert weight_files(path / subfolder)
    assert (path / "3_Normalize").exists() == (made / "3_Normalize").exists()
    hub_server.served.clear()
    assert hub.fetch(REPO, cache_dir=cache, endpoint=hub_server.url) == path
    assert hub.fetch(REPO, cache_dir=cache, offline=True) == path
    assert hub.fetch(REPO, cache_dir=cache, endpoint=UNREACHABLE) == path
    assert hub_server.served == []


@pytest.mark.parametrize("is_offline", [True, False])
@pytest.mark.parametrize("name", ["1_Pooling/config.json", "2_Dense/model.safetensors", "modules.json"])
def test_missing_files_of_modules_are_an_unfinished_download(
    hub_server: Hub, tmp_path: Path, name: str, is_offline: bool
) -> None:
    """Without modules.json, as in the cache of a version that did not read it, the vectors would be wrong."""
    become(hub_server.folder, dense=[DenseOf(4)])
    folder = hub.fetch(REPO, cache_dir=tmp_path / "cache", endpoint=hub_server.url)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"and no {name}: an earlier download was not finished"):
        hub.fetch(REPO, cache_dir=tmp_path / "cache", offline=is_offline, endpoint=UNREACHABLE)
    assert hub.fetch(REPO, cache_dir=tmp_path / "cache", endpoint=hub_server.url) == folder
    assert (folder / name).is_file()


def test_a_repository_without_the_files_of_a_module_is_an_error(hub_server: Hub, tmp_path: Path) -> None:
    shutil.rmtree(become(hub_server.folder) / "1_Pooling")
    with pytest.raises(CheckpointError, match=r"the repository holds no 1_Pooling/config\.json; it holds "):
        hub.fetch(REPO, cache_dir=tmp_path / "cache", endpoint=hub_server.url)


def test_modules_that_lead_out_of_the_folder_are_not_downloaded(hub_server: Hub, tmp_path: Path) -> None:
    write_json(
        become(hub_server.folder) / "modules.json", [{"path": "..", "type": "sentence_transformers.models.Dense"}]
    )
    path = hub.fetch(REPO, cache_dir=tmp_path / "cache", endpoint=hub_server.url)
    with pytest.raises(CheckpointError, match=r"modules\.json: \[0\]\.path is '\.\.'; wanted a path inside"):
        describe(path, "m")


# what is not there


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
        rf"\.\.\.\): an earlier download was not finished; {'offline mode is on' if is_offline else 'the download'}"
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

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(hub.HfApi, "model_info", fail)
    monkeypatch.setenv("ALL_PROXY", "socks5://user:secret@127.0.0.1:7890")
    assert hub.fetch(REPO, cache_dir=tmp_path / "cache") == folder
    with pytest.raises(CheckpointError) as caught:
        hub.fetch(REPO, cache_dir=tmp_path / "empty")
    assert f"failed ({type(error).__name__}: {error}; the environment names a proxy" in caught.value.detail
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
    with pytest.raises(CheckpointError, match="not in the cache, and the download from"):
        hub.fetch(REPO, cache_dir=tmp_path, endpoint="http://127.0.0.1:9")


# where the hub is far away, or nobody answers


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that accepts connections and never answers, as behind a firewall that drops packets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def wait_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "ANSWER_S", 0.05)
    monkeypatch.setattr(repository, "FIRST_ANSWER_S", 0.05)


def test_a_hub_that_does_not_answer_leaves_what_the_cache_has(
    hub_server: Hub, tmp_path: Path, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hub.fetch(REPO, cache_dir=tmp_path, endpoint=hub_server.url)
    wait_briefly(monkeypatch)
    assert hub.fetch(REPO, cache_dir=tmp_path, endpoint=silent) == path


def test_the_error_of_a_hub_that_does_not_answer_names_endpoint_variable_and_ways_out(
    tmp_path: Path, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", silent)
    wait_briefly(monkeypatch)
    with pytest.raises(CheckpointError) as caught:
        hub.fetch(REPO, cache_dir=tmp_path)
    for words in (f"{silent} (HF_ENDPOINT)", "no answer within 0.05 s", "ms://ORG/NAME", "give the folder"):
        assert words in caught.value.detail


def test_a_cached_commit_is_taken_without_asking(hub_server: Hub, tmp_path: Path, silent: str) -> None:
    path = hub.fetch(REPO, COMMIT, cache_dir=tmp_path, endpoint=hub_server.url)
    assert hub.fetch(REPO, COMMIT, cache_dir=tmp_path, endpoint=silent) == path


def test_an_endpoint_without_scheme_is_https(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "hf-mirror.com/")
    assert endpoints.hugging_face().url == "https://hf-mirror.com"


def test_the_password_of_an_endpoint_is_not_shown() -> None:
    assert str(endpoints.hugging_face("https://me:secret@mirror.example")) == "https://mirror.example (HF_ENDPOINT)"
    error = OSError("500 for url 'https://me:secret@mirror.example/api/models/a'\nmore on this")
    assert endpoints.describe_failure(error) == "OSError: 500 for url 'https://mirror.example/api/models/a'"


def test_what_looks_like_a_token_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "secret-of-mine\n")
    text = "a hf_abcdefghijklmnop b ms-1234567890ab c secret-of-mine"
    assert endpoints.hide_secrets(text) == "a *** b *** c ***"


def test_a_token_that_no_header_can_carry_is_named_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    error = UnicodeEncodeError("ascii", "Bearer 密", 7, 8, "ordinal not in range(128)")
    assert "HF_TOKEN or MODELSCOPE_API_TOKEN has a character" in endpoints.describe_failure(error)


@pytest.mark.parametrize(("token_to_mirror", "seen"), [(False, None), (True, "Bearer hf_secret")])
def test_the_token_goes_to_a_mirror_only_where_asked(
    hub_server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token_to_mirror: bool, seen: str | None
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.fetch(REPO, cache_dir=tmp_path, endpoint=hub_server.url, token_to_mirror=token_to_mirror)
    assert hub_server.tokens == {seen}


@pytest.mark.parametrize(
    ("url", "is_mirror"),
    [
        ("https://huggingface.co", False),
        ("https://x.hf.co", False),
        ("https://huggingface.co.evil.example", True),
        ("https://huggingface.co@evil.example/", True),
        ("http://huggingface.co", True),
    ],
)
def test_a_mirror_is_any_other_host_and_any_address_without_tls(url: str, is_mirror: bool) -> None:
    assert endpoints.hugging_face(url).is_mirror is is_mirror


def test_a_private_repository_of_a_mirror_names_the_setting(hub_server: Hub, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="HF_TOKEN and --token-to-mirror"):
        hub.fetch("IDEA-CCNL/private", cache_dir=tmp_path, endpoint=hub_server.url)
