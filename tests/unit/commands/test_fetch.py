"""`python -m service fetch`: printed paths, and the error of a model that cannot be fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

from service import cli
from tests.checkpoints import make_checkpoint


def test_fetch_prints_the_path_of_every_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (make_checkpoint(tmp_path / name, num_layers=1, hidden_size=16, num_heads=2) for name in "ab")
    assert cli.main(["fetch", "--model", f"one={first}", "--model", str(second)]) == 0
    assert capsys.readouterr().out == f"one {first}\nb {second}\n"


def test_fetch_fails_with_the_reason_when_a_model_is_unavailable(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ["--offline", "--cache-dir", str(tmp_path), "--model", "IDEA-CCNL/Erlangshen-Nowhere"]
    assert cli.main(["fetch", *flags]) == 2
    assert "not in the cache, and offline mode is on" in capsys.readouterr().err
