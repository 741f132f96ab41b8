"""`evaluate` and `predict` as commands, with the model that ships in their own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.system, pytest.mark.slow]

GOOD = ("很好吃，下次还来", "质量不错，非常满意", "送得很快，服务周到", "物美价廉，推荐购买")
BAD = ("太难吃了，再也不来", "质量太差，非常失望", "等了两个小时，服务态度恶劣", "又贵又不好，不推荐")


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    lines = [f'"{text}",{label}' for label, texts in (("好评", GOOD), ("差评", BAD)) for text in texts]
    file = tmp_path / "reviews.csv"
    file.write_text("\n".join(["评论,标签", *lines]), encoding="gb18030")
    return file


def command(*words: str) -> tuple[dict[str, Any], str]:
    """The JSON document on standard output, and standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "service", *words],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},
    )
    return json.loads(done.stdout), done.stderr


def test_evaluate_starts_the_model_and_prints_one_document(reviews: Path) -> None:
    report, said = command("evaluate", str(reviews), "--model", "mini")
    assert (report["model"], report["method"], report["examples"]) == ("mini", "choice", 8)
    assert report["accuracy"] >= 0.75
    assert "guessed encoding gb18030" in said
    assert "reviews.csv by mini: accuracy" in said


def test_predict_starts_the_model_and_labels_every_row(reviews: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    report, _ = command("predict", str(reviews), "--model", "mini", "--labels", "好评,差评", "--out", str(out))
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["评论"] for row in rows] == [*GOOD, *BAD]
    assert sum(row["label"] == row["标签"] for row in rows) >= 6
    assert report["predicted"] == 8


def test_a_model_that_cannot_be_started_is_one_line(reviews: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as end:
        command("evaluate", str(reviews), "--model", "./nowhere")
    assert end.value.returncode == 2
    assert end.value.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in end.value.stderr
