"""`python -m service batch` with real processes, some of which are killed: one answer for each row, in order."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import Server, serving, until

pytestmark = [pytest.mark.system, pytest.mark.slow]

NUM_ROWS = 1500
BAD = {100, 101, 900}
WAIT_S = 300.0
CHARACTERS = "这家餐厅的菜很好吃服务也周到评差北京中国首都府男人在公园里弹吉他"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ERLANGSHEN_REPLICAS__THREADS": "1"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file, choose = tmp_path_factory.mktemp("corpus") / "in.jsonl", random.Random(7)
    with file.open("w", encoding="utf-8") as lines:
        for row in range(NUM_ROWS):
            text = "".join(choose.choices(CHARACTERS, k=choose.randint(5, 60)))
            lines.write("{\n" if row in BAD else json.dumps({"id": row, "text": text}) + "\n")
    return file


def command(corpus: Path | str, out: Path | str, *flags: str) -> list[str]:
    asked = ("--task", "classify", "--labels", "好评,差评", "--body", '{"method": "choice"}', "--keep", "id")
    return [sys.executable, "-m", "service", "batch", str(corpus), str(out), *asked, *flags]


@contextmanager
def started(words: Sequence[str]) -> Any:
    process = subprocess.Popen(
        words, env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def num_parts(out: Path) -> int:
    return len(list(Path(f"{out}.parts").glob("part-*")))


def check(out: Path) -> None:
    """Every row is there once, in order, and the bad ones in the side file."""
    rows = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert [row["row"] for row in rows] == list(range(1, NUM_ROWS + 1))
    assert [row["id"] for row in rows if "error" not in row] == [row for row in range(NUM_ROWS) if row not in BAD]
    assert {row["row"] - 1 for row in rows if "error" in row} == BAD
    bad = [json.loads(line)["row"] - 1 for line in Path(f"{out}.bad.jsonl").read_bytes().splitlines()]
    assert set(bad) == BAD
    assert not Path(f"{out}.parts").exists()


async def test_a_run_that_is_killed_goes_on(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    for _ in range(3):
        before = num_parts(out)
        with started(command(corpus, out, "--model", "mini")) as process:
            await until(lambda before=before: num_parts(out) > before or process.poll() is not None, WAIT_S)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
    with started(command(corpus, out, "--model", "mini")) as process:
        output, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, errors
    assert "going on" in errors
    report = json.loads(output)
    assert (report["rows"], report["failed"]) == (NUM_ROWS, len(BAD))
    assert report["this_run"]["answered"] < NUM_ROWS - len(BAD)
    check(out)


async def test_servers_are_killed_and_stopped_on_the_way(corpus: Path, tmp_path: Path) -> None:
    """The rows of the killed one go on at the other one, which is restarted after that."""
    out = tmp_path / "out.jsonl"
    flags = ("--model", "mini", "--threads", "1")
    with serving(*flags) as killed, serving(*flags) as other:
        with started(command(corpus, out, "--url", killed.url, "--url", other.url)) as process:
            await until(lambda: num_parts(out) >= 2, WAIT_S)
            killed.kill()
            before = num_parts(out)
            await until(lambda: num_parts(out) > before or process.poll() is not None, WAIT_S)
            restart(other)
            output, errors = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0, errors
        assert json.loads(output)["rows"] == NUM_ROWS
    check(out)


def restart(server: Server) -> None:
    """SIGTERM: the server ends its replies with the line to go on with."""
    assert server.stop() == 0
    server.start()
