"""A real Prometheus scrapes the real service under load: every expression answers, and a killed replica is an alert."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from benchmarks.monitoring.__main__ import SERVER, kill_replica
from benchmarks.monitoring.callers import write_keys
from benchmarks.monitoring.checks import unanswered
from benchmarks.monitoring.load import loading
from benchmarks.monitoring.panels import Variables
from benchmarks.monitoring.stack import TOOLS, Stack, running
from tests.system.test_serve import until

absent = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = [pytest.mark.system, pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")]

SHORT = Variables(window="10s", whole="1m", before="2s")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("monitoring")
    keys = write_keys(folder)
    with (
        running(folder, *SERVER, "--keys-file", str(keys), key=folder / "prometheus.key") as stack,
        loading(stack.service, "--rate", "20", "--duration", "3600", key=folder / "web.key"),
    ):
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
    kill_replica(stack)
    until(lambda: "ErlangshenReplicaLost" in stack.alerts())
    told = stack.alerts()["ErlangshenReplicaLost"]
    assert (told["severity"], told["reason"], told["replica"]) == ("warning", "killed", "cpu")
