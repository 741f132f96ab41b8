"""The code of docs/clients.md runs with the clients that it imports, against a server."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.environments import REQUIREMENTS, RUN_S, environment, python_of
from tests.clients.serving import Served, secret, serving_all

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "docs" / "zh" / "clients.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"<!-- client:(?P<group>[\w-]+):(?P<name>[\w-]+) -->\n```python\n(?P<code>.*?)```\n", re.DOTALL)
BLOCKS = [(match["group"], match["name"], match["code"]) for match in BLOCK.finditer(PAGE)]
ADDRESS, KEY = "http://127.0.0.1:8000", "erl_..."


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving_all(tmp_path_factory.mktemp("pages")) as served:
        yield served


def test_every_block_of_code_is_one_that_is_run() -> None:
    assert PAGE.count("```python\n") == len(BLOCKS) > 0
    assert len({name for _, name, _ in BLOCKS}) == len(BLOCKS)


def test_the_chinese_page_has_blocks_of_this_one() -> None:
    blocks = [match[0] for match in BLOCK.finditer(CHINESE)]
    assert CHINESE.count("```python\n") == len(blocks) > 0
    assert [block for block in blocks if block not in PAGE] == []


@pytest.mark.parametrize(("group", "name", "code"), BLOCKS, ids=[name for _, name, _ in BLOCKS])
def test_a_block_is_python_for_a_pinned_client(group: str, name: str, code: str) -> None:
    compile(code, name, "exec")
    assert ADDRESS in code
    assert (REQUIREMENTS / f"{group}.txt").exists()


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.parametrize(("group", "name", "code"), BLOCKS, ids=[name for _, name, _ in BLOCKS])
def test_a_block_runs(served: Served, group: str, name: str, code: str) -> None:
    ready = code.replace(ADDRESS, served.url).replace(KEY, secret("app"))
    command = [python_of(group), "-c", ready]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=RUN_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
