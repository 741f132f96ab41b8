"""Releases: the version of a commit, the files that name it, the changelog, provenance and checksums."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from scripts import release
from tests.deploy.manifests import ROOT

VERSION = release.current(ROOT)
NEXT = "9.8.7"


def git(folder: Path, *words: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, timeout=60)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with the files that name the version, in one commit."""
    for pattern in (*release.PLACES, "CHANGELOG.md"):
        for file in ROOT.glob(pattern):
            target = tmp_path / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "all")
    return tmp_path


def test_a_commit_without_a_tag_has_its_hash_in_the_version(project: Path) -> None:
    assert release.describe(project).startswith(f"{VERSION}-g")


def test_the_commit_of_the_tag_has_the_plain_version_unless_files_are_changed(project: Path) -> None:
    git(project, "tag", f"v{VERSION}")
    assert release.describe(project) == VERSION
    (project / "pyproject.toml").write_text((project / "pyproject.toml").read_text() + "\n")
    assert release.describe(project).endswith("-dirty")


def test_an_archive_without_git_has_the_plain_version(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert release.describe(tmp_path) == VERSION


def test_prepare_leaves_the_old_version_in_no_file_that_names_it(project: Path) -> None:
    changed = release.prepare(NEXT, "2030-01-02", project)
    assert {path.relative_to(project).as_posix() for path in changed} >= {
        "pyproject.toml",
        "service/settings.py",
        "docker/compose.yaml",
        "docker/compose.gpu.yaml",
        "k8s/overlays/cpu/kustomization.yaml",
        "k8s/overlays/gpu/kustomization.yaml",
        "docs/deployment.md",
    }
    assert release.current(project) == NEXT
    assert f"newTag: {NEXT}-cuda" in (project / "k8s/overlays/gpu/kustomization.yaml").read_text()
    assert f'VERSION = "{NEXT}"' in (project / "service/settings.py").read_text()
    for path in changed:
        assert f"erlangshen-service:{VERSION}" not in path.read_text(encoding="utf-8")


def test_prepare_dates_the_changelog_and_opens_a_new_section(project: Path) -> None:
    before = release.notes((project / "CHANGELOG.md").read_text(encoding="utf-8"), "Unreleased")
    release.prepare(NEXT, "2030-01-02", project)
    log = (project / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{NEXT}] - 2030-01-02" in log
    assert release.notes(log, NEXT) == before
    assert release.notes(log, "Unreleased") == ""


def test_a_release_without_notes_is_refused(project: Path) -> None:
    release.prepare(NEXT, "2030-01-02", project)
    with pytest.raises(release.ReleaseError, match=r"\[Unreleased\] is empty"):
        release.prepare("9.9.9", "2030-01-03", project)


@pytest.mark.parametrize("version", ["1", "v1.2.3", "1.2.3-g1234567"])
def test_a_version_has_three_numbers(project: Path, version: str) -> None:
    with pytest.raises(release.ReleaseError, match=r"wanted MAJOR\.MINOR\.PATCH"):
        release.prepare(version, "2030-01-02", project)


def test_check_wants_the_tag_and_then_passes(project: Path) -> None:
    release.prepare(NEXT, "2030-01-02", project)
    git(project, "commit", "--quiet", "--all", "--message", "release")
    with pytest.raises(release.ReleaseError, match=rf"git tag --sign v{NEXT}"):
        release.check(project)
    git(project, "tag", f"v{NEXT}")
    assert release.check(project) == NEXT


def test_provenance_names_the_commit_and_the_inputs_of_the_build(tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    archive.write_bytes(b"image")
    arguments = {"PIP_INDEX_URL": "u", "TORCH_INDEX": "https://me:secret@mirror/whl/cpu"}
    found = release.provenance("name:1", archive, "c" * 40, arguments, datetime(2030, 1, 2, tzinfo=UTC))
    assert found["subject"][0]["digest"]["sha256"] == release.digest(archive)
    build = found["predicate"]["buildDefinition"]
    assert build["externalParameters"]["arguments"] == {
        "PIP_INDEX_URL": "u",
        "TORCH_INDEX": "https://mirror/whl/cpu",
    }
    assert {"name": "source", "digest": {"gitCommit": "c" * 40}} in build["resolvedDependencies"]
    inputs = {one["name"] for one in build["resolvedDependencies"]}
    assert inputs >= {"Dockerfile", "requirements/lock/serve.txt", "requirements/lock/torch.txt"}


def test_pack_writes_every_file_with_its_checksum_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for podman, and without cosign."""
    engine = tmp_path / "engine"
    engine.write_text('#!/bin/sh\nif [ "$1" = save ]; then echo image > "$3"; else echo {}; fi\n')
    engine.chmod(0o755)
    monkeypatch.setattr(release.shutil, "which", lambda _: None)
    folder = tmp_path / "release"
    (missing,) = release.pack(str(engine), ["erlangshen-service:1"], folder, {}, datetime(2030, 1, 2, tzinfo=UTC))
    assert "cosign is not installed" in missing
    names = ["NOTES.md", *(f"erlangshen-service-1.{end}" for end in ("provenance.json", "sbom.cdx.json", "tar"))]
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert sums == {name: release.digest(folder / name) for name in names}
    assert json.loads((folder / "erlangshen-service-1.provenance.json").read_text())["_type"].startswith(
        "https://in-toto"
    )
