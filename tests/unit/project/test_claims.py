"""A table of measured numbers in the documents names its file of benchmarks/results, which has these numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.pages import PAGES, ROOT

DOCUMENTS = [*PAGES, ROOT / "benchmarks" / "README.md", *sorted((ROOT / "service" / "models").glob("*/README.md"))]
HEADING = re.compile(r"^#{2,3} (.*)$", re.MULTILINE)
NUMBERS = re.compile(r"^\|.*---:.*\|$", re.MULTILINE)
"""The line under the head of a table with a column of numbers."""
CELLS = re.compile(r"(?<!\\)\|")
RESULT = re.compile(r"\b(results/\w+\.json)")
NUMBER = re.compile(r"(?<![\w.,])[-+]?(?P<digits>\d[\d,]*(?:\.(?P<decimals>\d+))?)(?![\w.,]*\w)(?P<percent> ?%)?")
STATUS = re.compile(r"[1-5]\d\d\b")
UNITS = (1, 100, 1000, 1e-6, 1e-9)
"""From what a result has to what a table shows: the same, percent or points, milliseconds, MB, GB."""
OTHER_NUMBERS = {
    ("docs/claims.md", "What the 1.3B models need"): "computed",
    ("docs/finetuning.md", "Adapters"): "computed",
    ("docs/finetuning.md", "Hyper-parameters"): "one run each, described under the table",
    ("docs/labels.md", "Confidence"): "the answers to the request above it",
    ("docs/training.md", "Fine-tune"): "published by the authors",
    ("docs/zh/claims.md", "1.3B 模型需要多少资源"): "computed",
    ("docs/zh/finetuning.md", "适配器"): "computed",
    ("docs/zh/training.md", "微调"): "published by the authors",
    ("service/models/e5-small/README.md", "Coverage"): "printed by the command that makes the model",
}
DERIVED = {
    ("docs/batching.md", "Batch size"): "one line is assumed, and units are chosen for each",
    ("docs/batching.md", "Ten times the capacity"): "ratios of two numbers of the result",
    ("docs/operations.md", "Replicas for some loads"): "simulated by `plan` with the speeds of the result",
    ("docs/performance.md", "From start to ready"): "ratios of two numbers of the result",
    ("docs/performance.md", "What a request costs"): "ratios to the first line",
    ("docs/zh/labels.md", "结果可信吗"): "the answers to the request above the table",
    ("docs/zh/performance.md", "启动有多快"): "ratios of two numbers of the result",
    ("docs/zh/performance.md", "怎么调批次"): "ratios to the first line",
}
"""Sections that name a result and have numbers which follow from it, or are not of it."""


def sections(page: Path) -> Iterator[tuple[tuple[str, str], str]]:
    """The text under each heading, with the page and the heading."""
    _, *parts = HEADING.split(page.read_text(encoding="utf-8"))
    for heading, section in zip(parts[::2], parts[1::2], strict=True):
        yield (str(page.relative_to(ROOT)), heading), section


def results_of(section: str) -> list[Path]:
    files = [ROOT / "benchmarks" / name for name in RESULT.findall(section)]
    return [file for file in files if file.exists()]


def unsupported(page: Path) -> set[tuple[str, str]]:
    """The sections with numbers that name no result which exists."""
    return {where for where, section in sections(page) if NUMBERS.search(section) and not results_of(section)}


def columns_of_numbers(section: str) -> Iterator[str]:
    """The cells below the head of each column that is aligned to the right."""
    aligned: list[bool] = []
    for line in section.splitlines():
        cells = CELLS.split(line.strip().strip("|"))
        if not line.startswith("|"):
            aligned = []
        elif NUMBERS.match(line):
            aligned = [cell.strip().endswith("---:") for cell in cells]
        elif aligned:
            yield from (cell for cell, is_number in zip(cells, aligned, strict=True) if is_number)


def values_in(result: Any) -> Iterator[float]:
    """The numbers of a result, with the status codes that its keys begin with."""
    if isinstance(result, dict):
        yield from (float(key[:3]) for key in result if STATUS.match(key))
        yield from (value for one in result.values() for value in values_in(one))
    elif isinstance(result, list):
        yield from (value for one in result for value in values_in(one))
    elif isinstance(result, int | float):
        yield abs(float(result))


def unknown(section: str) -> list[str]:
    """The numbers of a section's tables that are no number of its results, rounded as they are shown."""
    values = {
        value for file in results_of(section) for value in values_in(json.loads(file.read_text(encoding="utf-8")))
    }
    missing = []
    for cell in columns_of_numbers(section):
        for found in NUMBER.finditer(cell):
            shown = float(found["digits"].replace(",", ""))
            step = 10.0 ** -len(found["decimals"] or "")
            units = (100,) if found["percent"] else UNITS
            if not any(abs(value * unit - shown) <= step * 0.50001 for value in values for unit in units):
                missing.append(found[0])
    return missing


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_table_of_measured_numbers_names_its_result(page: Path) -> None:
    assert unsupported(page) - OTHER_NUMBERS.keys() == set()


def test_every_exception_is_one() -> None:
    assert set().union(*map(unsupported, DOCUMENTS)) >= OTHER_NUMBERS.keys()


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_numbers_of_a_table_are_those_of_its_result(page: Path) -> None:
    found = {where: unknown(section) for where, section in sections(page) if results_of(section)}
    assert {where: numbers for where, numbers in found.items() if numbers and where not in DERIVED} == {}


def test_every_derived_number_is_one() -> None:
    found = {
        where for page in DOCUMENTS for where, section in sections(page) if results_of(section) and unknown(section)
    }
    assert found >= DERIVED.keys()


def test_a_wrong_number_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "one.json").write_text('{"accuracy": 0.8537, "seconds": [0.0123, 4567.8]}')
    monkeypatch.setattr("tests.unit.project.test_claims.ROOT", tmp_path)
    table = (
        "[one](results/one.json)\n\n| set | right | ms | rows |\n|---|---:|---:|---:|\n| a2 | 85.4 % | 12.3 | 4,568 |\n"
    )
    assert unknown(table) == []
    assert unknown(table.replace("85.4 %", "84.4 % (85.3 – 86.0)")) == ["84.4 %", "85.3", "86.0"]
    assert unknown(table.replace("12.3", "12.4").replace("4,568", "4,569")) == ["12.4", "4,569"]
