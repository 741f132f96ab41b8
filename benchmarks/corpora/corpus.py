"""The corpora of these benchmarks, and what is asked of them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from service.tools.bench.texts import Lengths

BODY = {"labels": ["好评", "差评"], "method": "choice"}
LENGTHS = "lognormal:31:152"
CHARACTERS = "今天的一个新闻说我们公司产品很好但是价格有点高客户觉得服务还可以所以大家讨论了很久没有结果"
MODEL = "mini"


def made_up(num: int, seed: int) -> Iterator[str]:
    draw = random.Random(seed)
    for length in Lengths.parse(LENGTHS).draw(num, draw):
        yield "".join(draw.choices(CHARACTERS, k=max(4, length - 10)))


def write_corpus(file: Path, texts: Iterable[str]) -> Path:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def command(source: Path, out: Path, *flags: str) -> list[str]:
    asked = ("--task", "classify", "--body", json.dumps(BODY), "--model", MODEL)
    return [sys.executable, "-m", "service", "batch", str(source), str(out), *asked, *flags]


def watch(process: subprocess.Popen[bytes], look: Callable[[], object], every_s: float) -> None:
    """Calls `look` until the process has ended. RuntimeError where it has failed."""
    while process.poll() is None:
        look()
        time.sleep(every_s)
    if process.returncode:
        raise RuntimeError("a run has failed; its errors are above")
