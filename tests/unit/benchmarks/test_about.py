"""What a report says of its making, and the flags that all benchmarks share."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.about import about, parser_of, save
from service.tools.bench.provenance import machine_class

DOC = """Does something.

    python -m benchmarks.something

By this method.

And so on.
"""


def test_a_report_names_its_making(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--json", "/r/a.json"])
    arguments = parser_of("something", DOC).parse_args([])
    made = about("something", DOC, arguments.machine, "numpy", precision="bfloat16")
    assert list(made) == ["command", "date", "commit", "versions", "machine", "precision", "method"]
    assert made["command"] == "python -m benchmarks.something --json FOLDER/a.json"
    assert (made["machine"], made["method"]) == (machine_class(), "By this method.\n\nAnd so on.")


def test_a_precision_is_named_where_one_applies_and_the_machine_as_was_said() -> None:
    arguments = parser_of("something", DOC).parse_args(["--machine", "a big one"])
    made = about("something", "Does something.", arguments.machine, method="Thus.", argv=["--rounds", "3"])
    assert "precision" not in made
    assert (made["machine"], made["method"]) == ("a big one", "Thus.")
    assert made["command"] == "python -m benchmarks.something --rounds 3"


def test_nothing_is_written_unless_a_file_is_named(tmp_path: Path) -> None:
    save({"a": "好"}, None)
    assert not list(tmp_path.iterdir())
    save({"a": "好"}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"a": "好"}


def test_a_folder_that_is_not_there_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        parser_of("something", DOC).parse_args(["--json", str(tmp_path / "none" / "a.json")])
