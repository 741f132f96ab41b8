"""Two instances behind a real proxy: no request is lost in a rolling restart or when one instance is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.clients import RIGHT, counted, questions
from tests.support.proxies import STEPS, behind, is_installed

pytestmark = [pytest.mark.anyio, pytest.mark.system, pytest.mark.slow]


@pytest.mark.parametrize("proxy", ["nginx", "haproxy"])
async def test_no_request_is_lost_in_a_rolling_restart_or_a_kill(tmp_path: Path, proxy: str) -> None:
    if not is_installed(proxy):
        pytest.skip(f"{proxy} is not installed")
    during = await behind(proxy, tmp_path, questions(4), 6, ("--model", "mini"))
    assert list(during) == list(STEPS)
    for exchanges in during.values():
        assert counted(exchanges) == {RIGHT: len(exchanges)}
        assert len(exchanges) > 50
