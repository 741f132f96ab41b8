"""Blocks of code that no test runs say why, with one of a few reasons."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.pages import NOT_RUN, PAGES, REASONS, ROOT, blocks_of

BLOCKS = {page: blocks_of(page) for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_block_that_is_not_run_says_why(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    marked = [block for block in BLOCKS[page] if block.is_marked]
    markers = [line for line in text.splitlines() if line.startswith(f"<!-- {NOT_RUN}")]
    assert len(markers) == len(marked), "a marker stands in the line before its block"
    assert {block.comment.removeprefix(NOT_RUN) for block in marked} <= REASONS


def test_every_reason_is_used() -> None:
    used = {block.comment.removeprefix(NOT_RUN) for blocks in BLOCKS.values() for block in blocks if block.is_marked}
    assert used == REASONS


def test_most_blocks_are_run() -> None:
    blocks = [block for blocks in BLOCKS.values() for block in blocks]
    assert sum(not block.is_marked for block in blocks) > len(blocks) / 2
