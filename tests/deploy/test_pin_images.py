"""`make pin-images` against a stand-in of a registry: digests go into the Dockerfile, Compose files and overlays."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from scripts.pin_images import PATHS, PinError, files, main, references, write
from tests.deploy.manifests import ROOT, needs

DIGEST = "sha256:" + "a" * 64
OLD = "sha256:" + "b" * 64
COMPOSE = "services:\n  a:\n    image: {}\n  b:\n    image: ${{OURS:-erlangshen-service:0.1.0}}\n"
OVERLAY = "images:\n  - name: erlangshen-service\n    newName: {}\n    newTag: 0.1.0\n{}patches: []\n"


def pinned(tmp_path: Path, text: str) -> str:
    """The text of a file whose references got DIGEST."""
    file = tmp_path / "file.yaml"
    assert write({file: text}, lambda _: DIGEST) == 0
    return file.read_text() if file.exists() else text


@pytest.mark.parametrize("reference", ["docker.io/prom/x:v1", f"docker.io/prom/x:v1@{OLD}"], ids=["tag", "old digest"])
def test_a_reference_gets_the_digest_and_keeps_its_tag(tmp_path: Path, reference: str) -> None:
    assert pinned(tmp_path, COMPOSE.format(reference)) == COMPOSE.format(f"docker.io/prom/x:v1@{DIGEST}")


def test_the_base_image_gets_the_digest(tmp_path: Path) -> None:
    text = "ARG PYTHON_IMAGE=docker.io/library/python:3.11{}\nFROM ${{PYTHON_IMAGE}} AS base\n"
    assert pinned(tmp_path, text.format("")) == text.format(f"@{DIGEST}")


@pytest.mark.parametrize("before", ["", f"    digest: {OLD}\n"], ids=["tag", "old digest"])
def test_an_overlay_gets_the_digest_beside_its_tag(tmp_path: Path, before: str) -> None:
    new = pinned(tmp_path, OVERLAY.format("127.0.0.1:5000/team/service", before))
    (image,) = yaml.safe_load(new)["images"]
    assert new.count("digest:") == 1
    assert image == {
        "name": "erlangshen-service",
        "newName": "127.0.0.1:5000/team/service",
        "newTag": "0.1.0",
        "digest": DIGEST,
    }


def test_local_builds_and_the_placeholder_registry_are_left_out() -> None:
    assert references(OVERLAY.format("registry.example.com/erlangshen-service", "")) == []
    assert references("    image: erlangshen-service\n    image: ${OURS:-erlangshen-service:0.1.0}\n") == []


def test_when_one_tag_has_no_digest_nothing_is_written(tmp_path: Path) -> None:
    def digest_of(tagged: str) -> str:
        if tagged == "docker.io/b/b:2":
            raise PinError(f"{tagged}: unknown manifest")
        return DIGEST

    texts = {tmp_path / name: COMPOSE.format(f"docker.io/{name}/{name}:2") for name in "ab"}
    with pytest.raises(PinError, match=r"docker\.io/b/b:2: unknown manifest"):
        write(texts, digest_of)
    assert list(tmp_path.iterdir()) == []


def test_an_overlay_in_another_form_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not found silently, it would stay without a digest."""
    (tmp_path / "kustomization.yaml").write_text("images:\n  - {name: a, newName: registry/a, newTag: v1}\n")
    assert main(["--check", str(tmp_path)]) == 1
    assert "two lines of their own" in capsys.readouterr().err


def test_every_image_of_this_project_is_found() -> None:
    """A reference that this misses would never get a digest."""
    found = {tagged for path in files(PATHS) for tagged, _ in references(path.read_text())}
    named = {
        name
        for path in files(PATHS)
        for name in re.findall(r"^(?:ARG PYTHON_IMAGE=| *(?:- )?image: *)(\S+)", path.read_text(), re.MULTILINE)
    }
    ours = {name for name in named if "erlangshen-service" in name}
    assert {name.partition("@")[0] for name in named - ours} == found
    assert len(found) >= 4
    assert [name for name in ours if "/" in name and not name.startswith("registry.example.com/")] == []


def test_check_names_what_has_no_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text(COMPOSE.format("docker.io/prom/x:v1"))
    assert main(["--check", str(tmp_path)]) == 1
    assert f"{file}: docker.io/prom/x:v1" in capsys.readouterr().err
    file.write_text(COMPOSE.format(f"docker.io/prom/x:v1@{DIGEST}"))
    assert main(["--check", str(tmp_path)]) == 0


# With skopeo

INDEX = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": DIGEST,
                "size": 2,
                "platform": {"os": "linux", "architecture": architecture},
            }
            for architecture in ("amd64", "arm64")
        ],
    }
).encode()


class Registry(BaseHTTPRequestHandler):
    """The part of the registry API that a look-up of a tag needs; it has the tag `v1` of every name."""

    def do_GET(self) -> None:
        known = self.path == "/v2/" or self.path.endswith("/manifests/v1")
        body = INDEX if known else b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}'
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "application/vnd.oci.image.index.v1+json" if known else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def registry() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@needs("skopeo")
@pytest.mark.parametrize(("tag", "status"), [("v1", 0), ("v2", 1)], ids=["known", "unknown"])
def test_skopeo_resolves_the_tags_of_this_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tag: str, status: int
) -> None:
    """The project's own files, with another tag, whose registry is replaced in the configuration of skopeo."""
    shutil.copy(ROOT / "Dockerfile", tmp_path)
    shutil.copytree(ROOT / "docker", tmp_path / "docker")
    for path in files([tmp_path / "Dockerfile", tmp_path / "docker"]):
        text = re.sub(r"@sha256:[0-9a-f]{64}", "", path.read_text())
        for tagged, _ in references(text):
            text = text.replace(tagged, f"{tagged.rpartition(':')[0]}:{tag}")
        path.write_text(text)
    paths = [str(tmp_path / name) for name in ("Dockerfile", "docker")]
    with registry() as address:
        configuration = tmp_path / "home" / ".config" / "containers" / "registries.conf"
        configuration.parent.mkdir(parents=True)
        configuration.write_text(f'[[registry]]\nprefix = "docker.io"\nlocation = "{address}"\ninsecure = true\n')
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert main(paths) == status
    said = capsys.readouterr()
    if status == 0:
        assert said.out.count(f"@sha256:{hashlib.sha256(INDEX).hexdigest()}\n") == 4
        assert main(["--check", *paths]) == 0
    else:
        assert "manifest unknown" in said.err
        assert main(["--check", *paths]) == 1
