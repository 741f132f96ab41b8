from __future__ import annotations

from pathlib import Path

import pytest

from service import cli
from tests.checkpoints import make_checkpoint


def test_it_says_where_every_model_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (make_checkpoint(tmp_path / name, num_layers=1, hidden_size=16, num_heads=2) for name in "ab")
    assert cli.main(["fetch", "--model", f"one={first}", "--model", str(second)]) == 0
    assert capsys.readouterr().out == f"one {first}\nb {second}\n"


def test_a_model_that_cannot_be_had_ends_it_with_the_reason(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = ["--offline", "--cache-dir", str(tmp_path), "--model", "IDEA-CCNL/Erlangshen-Nowhere"]
    assert cli.main(["fetch", *flags]) == 2
    assert "not in the cache, and offline mode is on" in capsys.readouterr().err
