"""Packages for training only: no command imports them at start, and the error when they are missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from service import cli
from service.commands.finetune import TRAINING_PACKAGES
from service.host import install_command

FLAGS = ["finetune", "tnews", "--data", "data", "--output", "out", "--model", "models/mini"]


@pytest.mark.parametrize("missing", [TRAINING_PACKAGES, ("scipy",)])
def test_the_error_of_missing_packages_names_the_install_command(
    missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in missing:
        monkeypatch.setitem(sys.modules, package, None)
    assert cli.main(FLAGS) == 2
    assert capsys.readouterr().err == (
        f"error: finetune needs {', '.join(missing)}: {install_command('-r requirements/train.txt')}\n"
    )


def test_no_command_imports_torch_or_a_training_package_at_start() -> None:
    code = (
        "import sys, importlib; from service.cli import COMMANDS;"
        "[importlib.import_module(f'service.commands.{name}') for name in COMMANDS];"
        f"print(*{{'torch', 'matplotlib', *{TRAINING_PACKAGES}}} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.split() == []
