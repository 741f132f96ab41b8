"""`batch --ray` on a cluster of two nodes on this machine, of which a worker and then a node are killed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.servers import until
from tests.system.test_corpora import BAD, NUM_ROWS, WAIT_S, check, command, corpus, num_parts, started

cluster_utils = pytest.importorskip(
    "ray.cluster_utils", reason="ray is not installed: pip install -r requirements/ray.txt"
)

pytestmark = [pytest.mark.system, pytest.mark.slow]

__all__ = ["corpus"]
"""A fixture."""


@pytest.fixture
def cluster() -> Iterator[Any]:
    """The head and another node, with one CPU each."""
    found = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        yield found
    finally:
        found.shutdown()


def actors() -> list[psutil.Process]:
    """The processes of the actors: children of the nodes, which this process has started."""
    return [child for child in psutil.Process().children(recursive=True) if "ray::" in name_of(child)]


def name_of(process: psutil.Process) -> str:
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        return ""
    return words if "MapWorker" in words or "Engine" in words else ""


async def test_a_worker_and_a_node_are_killed_on_the_way(cluster: Any, corpus: Path, tmp_path: Path) -> None:
    out, node = tmp_path / "out.jsonl", cluster.add_node(num_cpus=1)
    flags = ("--model", "mini", "--ray", cluster.address, "--part-rows", "50")
    with started(command(corpus, out, *flags)) as process:
        await until(lambda: num_parts(out) >= 3 or process.poll() is not None, WAIT_S)
        found = actors()
        assert len(found) == 2
        found[0].kill()
        before = num_parts(out)
        await until(lambda: num_parts(out) >= before + 3 or process.poll() is not None, WAIT_S)
        cluster.remove_node(node, allow_graceful=False)
        output, errors = process.communicate(timeout=2 * WAIT_S)
    assert process.returncode == 0, errors
    report = json.loads(output)
    assert (report["rows"], report["failed"]) == (NUM_ROWS, len(BAD))
    check(out)


async def test_a_driver_that_is_killed_goes_on(cluster: Any, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    flags = ("--model", "mini", "--ray", cluster.address, "--part-rows", "100")
    with started(command(corpus, out, *flags)) as process:
        await until(lambda: num_parts(out) >= 2 or process.poll() is not None, WAIT_S)
        process.kill()
    with started(command(corpus, out, *flags)) as process:
        output, errors = process.communicate(timeout=2 * WAIT_S)
    assert process.returncode == 0, errors
    assert "going on" in errors
    assert json.loads(output)["this_run"]["answered"] < NUM_ROWS - len(BAD)
    check(out)
