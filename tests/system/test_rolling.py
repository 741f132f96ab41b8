"""Two instances behind a real proxy: restarted in turn under load, and one killed, and no request is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults.clients import RIGHT, counted, questions
from benchmarks.faults.proxies import is_installed
from benchmarks.faults.rolling import STEPS, behind
from tests.checkpoints import make_checkpoint

pytestmark = [pytest.mark.anyio, pytest.mark.system]


@pytest.mark.parametrize("proxy", ["nginx", "haproxy"])
async def test_a_rolling_restart_and_a_kill_lose_nothing(tmp_path: Path, proxy: str) -> None:
    if not is_installed(proxy):
        pytest.skip(f"{proxy} is not installed")
    model = make_checkpoint(tmp_path / "model", num_layers=1)
    during = await behind(proxy, tmp_path, questions(4), 6, ("--model", f"uni={model}"))
    assert list(during) == list(STEPS)
    for fits in during.values():
        assert counted(fits) == {RIGHT: len(fits)}
        assert len(fits) > 50
