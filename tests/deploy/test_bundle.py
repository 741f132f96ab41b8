"""The script that installs a bundle: what it refuses before it changes anything."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "install_bundle.sh"
VERSION = "{}.{}".format(*sys.version_info)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with one model and no packages."""
    folder = tmp_path / "bundle"
    (folder / "app").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "models" / "vocab.txt").write_text("[PAD]")
    (folder / "python-version").write_text(f"{VERSION}\n")
    shutil.copy(SCRIPT, folder / "install.sh")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(sums))
    return folder


def install(bundle: Path, python: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(bundle / "install.sh"), str(bundle.parent / "target"), python]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def installed(bundle: Path) -> list[str]:
    return [path.name for path in (bundle.parent / "target").iterdir()]


def test_a_damaged_file_is_named_and_nothing_is_installed(bundle: Path) -> None:
    (bundle / "models" / "vocab.txt").write_text("[PAX]")
    run = install(bundle, sys.executable)
    assert run.returncode == 1
    assert "models/vocab.txt: FAILED" in run.stdout
    assert "error: files are damaged; copy the archive again" in run.stderr
    assert installed(bundle) == []


@pytest.mark.parametrize("python", ["no-such-python", "another"])
def test_another_version_of_python_is_refused(bundle: Path, python: str) -> None:
    if python == "another":
        python = str(bundle / python)
        Path(python).write_text("#!/bin/sh\necho 3.4\n")
        Path(python).chmod(0o755)
    run = install(bundle, python)
    assert run.returncode == 2
    found = "3.4" if "/" in python else "none"
    assert f"error: the packages are for Python {VERSION}, and {python} is {found}; name another one" in run.stderr
    assert installed(bundle) == []
