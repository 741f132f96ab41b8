"""The command line: choice of the command, exit codes, and printed settings."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from io import BytesIO, TextIOWrapper
from pathlib import Path
from types import ModuleType

import pytest

from service import cli
from service.errors import CheckpointError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fake_command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Sequence[str]]]:
    """Replaces the command of the given name; returns the list of the arguments of its calls."""

    def place(name: str, result: int | Exception = 0) -> list[Sequence[str]]:
        calls: list[Sequence[str]] = []

        def run(argv: Sequence[str]) -> int:
            calls.append(argv)
            if isinstance(result, Exception):
                raise result
            return result

        module = ModuleType(name)
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, f"service.commands.{name}", module)
        return calls

    return place


def test_no_command_means_serve(fake_command: Callable[..., list[Sequence[str]]]) -> None:
    calls = fake_command("serve", 3)
    assert cli.main(["--port", "1"]) == 3
    assert cli.main([]) == 3
    assert cli.main(["serve", "--port", "2"]) == 3
    assert calls == [["--port", "1"], [], ["--port", "2"]]


def test_a_startup_error_prints_one_line_and_exits_with_2(
    fake_command: Callable[..., list[Sequence[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    fake_command("evaluate", CheckpointError("config.json: hidden_size is 'x'; wanted a number"))
    assert cli.main(["evaluate"]) == 2
    assert capsys.readouterr().err == "error: config.json: hidden_size is 'x'; wanted a number\n"


def test_the_error_of_an_unknown_command_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serv"]) == 2
    err = capsys.readouterr().err
    assert "unknown command 'serv'" in err
    assert all(name in err for name in cli.COMMANDS)


@pytest.mark.parametrize("name", ["serve", "settings", "evaluate", "bench"])
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        cli.main([name, "--help"])
    assert exited.value.code == 0
    assert f"python -m service {name}" in capsys.readouterr().out


def test_settings_prints_the_effective_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["settings", "--port", "9", "--model", "a", "--model", "b", "--offline"]) == 0
    out = capsys.readouterr().out
    assert '"port": 9' in out
    assert '"offline": true' in out
    assert cli.main(["settings", "--tracing-endpoint", "https://user:s3cret@collector:4318"]) == 0
    assert '"endpoint": "https://***@collector:4318"' in capsys.readouterr().out
    assert cli.main(["settings", "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("# Settings")


def test_chinese_is_printed_as_utf_8_to_an_ascii_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    written = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(written, encoding="ascii", write_through=True))
    assert cli.main(["settings", "--labels", "a=好评,差评"]) == 0
    assert json.loads(written.getvalue())["models"]["labels"] == {"a": ["好评", "差评"]}


def test_a_python_without_the_packages_is_answered_with_the_line_to_type() -> None:
    command = [sys.executable, "-S", "-m", "service", "plan"]  # -S: without the packages of the environment
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 2
    assert run.stderr == (
        f"error: {sys.executable} has no package pydantic; with those that `make serve` installs: "
        ".venv/bin/python -m service\n"
    )
