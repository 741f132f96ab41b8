"""A real Prometheus scrapes the service under load: every expression has a result; a killed replica fires an alert."""

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


def test_every_expression_has_a_result(stack: Stack) -> None:
    """Rates need samples over some seconds, so missing results are retried."""
    missing: list[str] = ["not queried yet"]

    def all_answer() -> bool:
        missing[:] = unanswered(stack, SHORT)
        return not missing

    try:
        until(all_answer, within_s=45)
    except AssertionError:
        pytest.fail("without a result:\n" + "\n".join(missing))


def test_a_killed_replica_is_an_alert_that_reaches_alertmanager(stack: Stack) -> None:
    kill_replica(stack)
    until(lambda: "ErlangshenReplicaLost" in stack.alerts())
    alert = stack.alerts()["ErlangshenReplicaLost"]
    assert (alert["severity"], alert["reason"], alert["replica"]) == ("warning", "killed", "cpu")
