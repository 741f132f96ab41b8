"""The origin in a report, the flags of all benchmarks, the choice of a sub-command, and their environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common import about, as_worker, parser_of, save
from service.tools.bench.provenance import machine_class

DOC = """Does something.

    python -m benchmarks.something

By this method.

And so on.
"""
ENTRY_POINTS = ("engine", "gpu", "http", "overload", "faults", "peers", "dashboards")


def test_a_report_names_its_origin() -> None:
    argv = ["--json", "/tmp/a.json"]
    arguments = parser_of("some thing", DOC).parse_args(argv)
    made = about(arguments, argv, "numpy", precision="bfloat16")
    assert list(made) == ["command", "date", "commit", "versions", "machine", "precision", "method"]
    assert made["command"] == "python -m benchmarks.some thing --json FOLDER/a.json"
    assert (made["machine"], made["method"]) == (machine_class(), "By this method.\n\nAnd so on.")


def test_precision_is_left_out_where_nothing_is_computed() -> None:
    argv = ["--machine", "a big one"]
    made = about(parser_of("something", DOC).parse_args(argv), argv, method="Thus.")
    assert "precision" not in made
    assert (made["machine"], made["method"]) == ("a big one", "Thus.")


def test_a_report_is_written_only_where_a_file_is_named(tmp_path: Path) -> None:
    save({"a": "好"}, None)
    assert not list(tmp_path.iterdir())
    save({"a": "好"}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"a": "好"}


def test_a_missing_folder_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        parser_of("something", DOC).parse_args(["--json", str(tmp_path / "none" / "a.json")])


@pytest.mark.system
@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_entry_point_has_help(name: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert shown.startswith(f"usage: python -m benchmarks.{name}")


def test_a_benchmark_has_the_threads_of_a_worker_process_and_its_own_search_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[dict[str, str]] = []
    monkeypatch.setattr(os, "execve", lambda program, command, variables: started.append(variables))
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    as_worker(3)
    [variables] = started
    assert (variables["OMP_NUM_THREADS"], variables["OMP_WAIT_POLICY"]) == ("3", "PASSIVE")
    assert not set(variables["PYTHONPATH"].split(os.pathsep)) & set(filter(None, sys.path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    as_worker(3)
    assert len(started) == 1
