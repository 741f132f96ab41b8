"""Batches of a server process that is killed, and one that is stopped, in the middle of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.checkpoints import make_checkpoint
from tests.support.servers import Server, until

pytestmark = [pytest.mark.slow, pytest.mark.system, pytest.mark.anyio]
NUM_LINES = 6000
WITHIN_S = 300.0
URL = "/v1/classify"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that is not started."""
    make_checkpoint(tmp_path / "tuned", kind="sequence-classification", id2label={0: "好评", 1: "差评"})
    server = Server(
        tmp_path / "log", [f"--model=tuned={tmp_path / 'tuned'}", f"--data-dir={tmp_path / 'data'}", "--threads=1"]
    )
    yield server
    server.kill()


def start_batch(server: Server) -> str:
    lines = (
        {"custom_id": str(number), "method": "POST", "url": URL, "body": {"inputs": [f"第{number}条"]}}
        for number in range(NUM_LINES)
    )
    content = "\n".join(json.dumps(line) for line in lines).encode()
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        file = client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in", content)}).json()
        body = {"input_file_id": file["id"], "endpoint": URL, "completion_window": "24h"}
        id: str = client.post("/v1/batches", json=body).json()["id"]
    return id


def read(server: Server, id: str) -> dict[str, Any]:
    found: dict[str, Any] = server.get(f"/v1/batches/{id}").json()
    return found


def num_answered(server: Server, id: str) -> int:
    completed: int = read(server, id)["request_counts"]["completed"]
    return completed


async def check_results(server: Server, id: str) -> None:
    await until(lambda: read(server, id)["status"] == "completed", WITHIN_S)
    batch = read(server, id)
    assert batch["request_counts"] == {"total": NUM_LINES, "completed": NUM_LINES, "failed": 0}
    answers = [
        json.loads(line) for line in server.get(f"/v1/files/{batch['output_file_id']}/content").text.splitlines()
    ]
    assert [answer["custom_id"] for answer in answers] == [str(number) for number in range(NUM_LINES)]
    assert {answer["response"]["status_code"] for answer in answers} == {200}


async def test_a_batch_goes_on_after_a_kill_with_one_answer_for_each_line(server: Server) -> None:
    server.start()
    id = start_batch(server)
    await until(lambda: num_answered(server, id) > 0, WITHIN_S)
    server.kill()
    server.start()
    assert num_answered(server, id) < NUM_LINES, "more lines are needed on this machine"
    await check_results(server, id)


async def test_a_batch_goes_on_after_a_stop_that_finishes_the_lines_in_work(server: Server) -> None:
    server.start()
    id = start_batch(server)
    await until(lambda: num_answered(server, id) > 0, WITHIN_S)
    assert server.stop() == 0
    server.start()
    num_before = num_answered(server, id)
    assert 0 < num_before < NUM_LINES
    await check_results(server, id)
    assert server.metric("batch_job_lines_total", result="completed") <= NUM_LINES - num_before
