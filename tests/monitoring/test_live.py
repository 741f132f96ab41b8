"""A real Prometheus scrapes the real service under load: every expression answers, and a killed replica is an alert."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.support.monitoring import TOOLS, Stack, Variables, kill_replica, loading, monitored, unanswered
from tests.system.test_serve import until

absent = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = [pytest.mark.system, pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")]

SHORT = Variables(window="10s", whole="1m", before="2s")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("monitoring")
    with monitored(folder) as stack, loading(stack.service, "--rate", "20", key=folder / "web.key"):
        yield stack


def test_every_expression_has_an_answer(stack: Stack) -> None:
    """Rates want samples of some seconds: what is still missing then is missing."""
    missing: list[str] = ["not asked yet"]

    def all_answer() -> bool:
        missing[:] = unanswered(stack, SHORT)
        return not missing

    try:
        until(all_answer, within_s=45)
    except AssertionError:
        pytest.fail("without an answer:\n" + "\n".join(missing))


def test_a_killed_replica_is_an_alert_that_reaches_alertmanager(stack: Stack) -> None:
    kill_replica(stack.service)
    until(lambda: "ErlangshenReplicaLost" in stack.alerts())
    told = stack.alerts()["ErlangshenReplicaLost"]
    assert (told["severity"], told["reason"], told["replica"]) == ("warning", "killed", "cpu")
