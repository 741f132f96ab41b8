"""A section of the documents with a table of measured numbers names the file of benchmarks/results that has them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.pages import PAGES, ROOT

HEADING = re.compile(r"^#{2,3} (.*)$", re.MULTILINE)
NUMBERS = re.compile(r"^\|.*---:.*\|$", re.MULTILINE)
"""The line under the head of a table with a column of numbers."""
RESULT = re.compile(r"benchmarks/(results/\w+\.json)")
OTHER_NUMBERS = {
    ("docs/claims.md", "What the 1.3B models need"): "computed",
    ("docs/finetuning.md", "Adapters"): "computed",
    ("docs/finetuning.md", "Hyper-parameters"): "one run each, described under the table",
    ("docs/labels.md", "Confidence"): "the answers to the request above it",
    ("docs/training.md", "Fine-tune"): "published by the authors",
    ("docs/zh/claims.md", "1.3B 模型需要多少资源"): "computed",
    ("docs/zh/finetuning.md", "适配器"): "computed",
    ("docs/zh/training.md", "微调"): "published by the authors",
}


def unsupported(page: Path) -> set[tuple[str, str]]:
    """The sections with numbers that name no result which exists."""
    text = page.read_text(encoding="utf-8")
    _, *parts = HEADING.split(text)
    found = set()
    for heading, section in zip(parts[::2], parts[1::2], strict=True):
        results = RESULT.findall(section)
        if NUMBERS.search(section) and not any((ROOT / "benchmarks" / one).exists() for one in results):
            found.add((str(page.relative_to(ROOT)), heading))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_table_of_measured_numbers_names_its_result(page: Path) -> None:
    assert unsupported(page) - OTHER_NUMBERS.keys() == set()


def test_every_exception_is_one() -> None:
    assert set().union(*map(unsupported, PAGES)) >= OTHER_NUMBERS.keys()
