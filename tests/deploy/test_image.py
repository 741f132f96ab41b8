"""Containers of a built image: answers, resource limits, graceful shutdown, exit codes, size and contents."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from service.settings import VERSION
from tests.checkpoints import make_checkpoint
from tests.deploy.containers import ENGINE, IMAGE, Container, engine, needs_image, running

pytestmark = [needs_image, pytest.mark.system]

ONE_CPU = ("--cpus", "1", "--memory", "1g")
QUESTION = {"inputs": "国足客场两球取胜，晋级十二强赛", "labels": ["体育", "财经", "娱乐"]}

# Sends a request that takes seconds; prints "running" when the server computes it, and its status at the end.
LONG_REQUEST = """
import json, threading, urllib.request
def get(path, body=None):
    with urllib.request.urlopen("http://127.0.0.1:8000" + path, body) as reply:
        return reply.status, reply.read().decode()
body = json.dumps({"inputs": ["很好吃的一家餐厅" * 60] * 256}).encode()
statuses = []
request = threading.Thread(target=lambda: statuses.append(get("/v1/embed", body)[0]))
request.start()
while 'erlangshen_requests_in_progress{task="embed"} 1.0' not in get("/metrics")[1]: pass
print("running", flush=True)
request.join()
print(statuses, flush=True)
"""


def test_a_container_without_network_and_volume_answers() -> None:
    with running() as container:
        container.wait_until("ready")
        (result,) = container.request("/v1/classify", QUESTION)["results"]
        assert result["label"] == "体育"
        assert container.exec("python", "-m", "service", "health") == ""
        assert container.exec("id", "-u").strip() == "10001"
        assert "Read-only file system" in container.exec("touch", "/app/x", check=False)


def test_threads_follow_the_quota() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this machine has one core, with and without a quota")
    with running(flags=ONE_CPU) as container:
        container.wait_until("ready")
        assert [replica["threads"] for replica in container.request("/v1/models")["replicas"]] == [1]


def test_a_model_in_a_mounted_folder_is_served(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "mine", kind="sequence-classification", num_layers=1, hidden_size=16, num_heads=2)
    for path in (tmp_path, *tmp_path.rglob("*")):  # readable for the user of the container
        path.chmod(0o755)
    with running("--model", "/models/mine", flags=("--volume", f"{tmp_path}:/models:ro")) as container:
        container.wait_until("ready")
        assert [model["name"] for model in container.request("/v1/models")["models"]] == ["mine"]


def stop_during_request(container: Container) -> str:
    """Stops the container while a request is running; returns the request's result."""
    command = [ENGINE, "exec", container.name, "python", "-c", LONG_REQUEST]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        engine("stop", "--time", "60", container.name)
        return process.stdout.read()


def test_stop_answers_running_requests_and_exits_with_0() -> None:
    with running(flags=ONE_CPU) as container:
        container.wait_until("ready")
        assert stop_during_request(container) == "[200]\n"
        assert container.exit_code() == 0
        assert '"message":"stopped"' in container.logs()


@pytest.mark.parametrize("memory", ["40m"])
def test_out_of_memory_of_the_container_exits_with_137(memory: str) -> None:
    with running(flags=("--memory", memory, "--memory-swap", memory)) as container:
        assert container.exit_code() == 137


def test_out_of_memory_of_the_worker_process_is_logged() -> None:
    with running(flags=("--memory", "180m", "--memory-swap", "180m")) as container:
        assert container.exit_code() == 2
        assert "out of memory" in container.logs()


def test_the_image_has_user_version_and_healthcheck() -> None:
    (image,) = json.loads(engine("image", "inspect", IMAGE))
    assert image["Config"]["User"] == "10001:10001"
    assert image["Config"]["Labels"]["org.opencontainers.image.version"] == VERSION
    healthcheck = image["Config"].get("Healthcheck") or image["Healthcheck"]
    assert healthcheck["Test"] == ["CMD", "python", "-m", "service", "health"]


def test_the_cpu_image_stays_small() -> None:
    (image,) = json.loads(engine("image", "inspect", IMAGE))
    assert image["Size"] <= 1_100_000_000


def test_the_image_has_no_compiler_and_has_a_bill_of_materials() -> None:
    with running() as container:
        container.wait_until("ready")
        missing = "import shutil; print(*map(shutil.which, ['gcc', 'cc', 'g++', 'make']))"
        assert container.exec("python", "-c", missing) == "None None None None\n"
        listed = json.loads(container.exec("cat", "/usr/share/doc/erlangshen-service/sbom.cdx.json"))
        assert {"torch", "fastapi", "tokenizers"} <= {component["name"] for component in listed["components"]}
