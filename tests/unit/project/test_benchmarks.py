"""Only the benchmarks' own tests import benchmarks, and every benchmark command and result in a document exists."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
IMPORT = re.compile(r"^\s*(?:from|import) benchmarks\b", re.MULTILINE)
COMMAND = re.compile(r"python -m (benchmarks(?:\.\w+)+)(?: ([a-z]+)\b)?")
OWN = ROOT / "tests" / "unit" / "benchmarks"
PAGES = [
    *chain.from_iterable(ROOT.glob(f"{folder}/*.md") for folder in (".", "docs", "benchmarks", "k8s")),
    *(ROOT / "benchmarks" / "results").glob("*.json"),
    ROOT / "Makefile",
]


def test_only_the_benchmarks_own_tests_import_benchmarks() -> None:
    files = [path for path in (ROOT / "tests").rglob("*.py") if not path.is_relative_to(OWN)]
    assert [path for path in files if IMPORT.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_benchmark_commands_exist(page: Path) -> None:
    for module, command in COMMAND.findall(page.read_text(encoding="utf-8")):
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
        if command and path.is_dir():
            assert (path / f"{command}.py").is_file(), f"{module} {command}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_named_result_files_exist(page: Path) -> None:
    named = re.findall(r"benchmarks/results/(\w+\.(?:json|png|txt|csv))\b", page.read_text(encoding="utf-8"))
    made_by_the_reader = re.compile(r".*_(NAME|h100)\.json|a\.json")
    missing = {name for name in named if not (ROOT / "benchmarks" / "results" / name).is_file()}
    assert {name for name in missing if not made_by_the_reader.fullmatch(name)} == set()
