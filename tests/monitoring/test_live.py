"""A real Prometheus scrapes the service under load: every expression has a result; a killed replica fires an alert."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import count

import pytest

from tests.support.monitoring import (
    TOOLS,
    Stack,
    Variables,
    kill_replica,
    loading,
    monitored,
    not_a_number,
    unanswered,
    use_label_set,
)
from tests.system.test_serve import until

absent = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = [pytest.mark.system, pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")]

SHORT = Variables(window="10s", whole="1m", before="2s")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("monitoring")
    with monitored(folder) as stack:
        yield stack


def test_panels_without_traffic_have_no_data_and_not_nan(stack: Stack) -> None:
    """It comes first: the other tests send requests."""
    until(lambda: len(stack.query('rate(erlangshen_requests_total{code="200"}[10s])')) > 0)
    assert list(not_a_number(stack, SHORT)) == []


@pytest.fixture(scope="module")
def loaded(stack: Stack) -> Iterator[Stack]:
    with loading(stack.service, "--rate", "20", key=stack.folder / "web.key"):
        yield stack


def test_every_expression_has_a_result(loaded: Stack) -> None:
    """Rates need samples over some seconds, so missing results are retried."""
    missing: list[str] = ["not queried yet"]
    turns = count()

    def all_answer() -> bool:
        use_label_set(loaded.service, loaded.folder / "owner.key", next(turns))
        missing[:] = unanswered(loaded, SHORT)
        return not missing

    try:
        until(all_answer, within_s=45)
    except AssertionError:
        pytest.fail("without a result:\n" + "\n".join(missing))


def test_an_alert_of_a_killed_replica_reaches_alertmanager(stack: Stack) -> None:
    kill_replica(stack.service)
    until(lambda: "ErlangshenReplicaLost" in stack.alerts())
    alert = stack.alerts()["ErlangshenReplicaLost"]
    assert (alert["severity"], alert["reason"], alert["replica"]) == ("warning", "killed", "cpu")
