"""Provenance of a report: the command without paths of this machine, and the commit of the code."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.settings import VERSION
from service.tools.bench import provenance


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("--json", "--json"),
        ("benchmarks/results/a.json", "benchmarks/results/a.json"),
        ("/data/x/a.json", "FOLDER/a.json"),
        ("/data/x", "FOLDER"),
        ("../x", "FOLDER"),
        ("big=/models/big", "big=FOLDER"),
        ("--texts=~/a.csv", "--texts=FOLDER/a.csv"),
        ("zero-shot=4,mrc=1", "zero-shot=4,mrc=1"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
    ],
)
def test_a_path_on_this_machine_is_redacted(word: str, shown: str) -> None:
    assert provenance.redact_path(word) == shown


def test_a_command_is_quoted_for_a_shell() -> None:
    found = provenance.provenance("service bench", ["--key-file", "/k/a key.txt"], "numpy")
    assert found["command"] == "python -m service bench --key-file 'FOLDER/a key.txt'"
    assert found["date"] == datetime.now(UTC).date().isoformat()
    assert list(found["versions"]) == ["service", "python", "numpy"]
    assert found["versions"]["service"] == VERSION


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def code(tmp_path: Path) -> Path:
    git(tmp_path, "init")
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "a.json").write_text("{}")
    folder = tmp_path / "service"
    folder.mkdir()
    (folder / "a.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    return folder


def test_the_commit_is_marked_dirty_when_the_code_was_changed(code: Path) -> None:
    short = git(code, "rev-parse", "--short", "HEAD")
    (code.parent / "benchmarks" / "results" / "a.json").write_text("[]")
    assert provenance.commit(code) == short
    (code / "a.py").write_text("2")
    assert provenance.commit(code) == f"{short}-dirty"


def test_code_outside_a_repository_has_an_unknown_commit(tmp_path: Path) -> None:
    assert provenance.commit(tmp_path) == "unknown"


def test_untracked_code_in_another_repository_has_an_unknown_commit(code: Path) -> None:
    installed = code.parent / "site-packages"
    installed.mkdir()
    (installed / "a.py").write_text("1")
    assert provenance.commit(installed) == "unknown"


def test_the_machine_is_named_by_its_class(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags : fpu avx2 avx512_bf16\nmodel name : some one\n")
    assert provenance.wide_instructions(cpuinfo) == ["avx2", "avx512_bf16"]
    assert provenance.wide_instructions(tmp_path / "none") == []
    assert f"{provenance.machine()['cores']}-core" in provenance.machine_class()
