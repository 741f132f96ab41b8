"""`python -m service serve` as a process with its worker processes, on random checkpoints."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from service.api.openapi import EXAMPLES
from tests.checkpoints import make_checkpoint

pytestmark = pytest.mark.system

START_S = 120
ANSWER_S = 60


@dataclass
class Running:
    """A server process and the lines of its output so far."""

    process: subprocess.Popen[str]
    url: str = ""
    lines: list[str] = field(default_factory=list)

    def read(self, is_ready: threading.Event) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r"docs +(https?://\S+)/docs", line):
                self.url = found[1]
                is_ready.set()
        is_ready.set()

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def metrics(self) -> dict[str, float]:
        text = httpx.get(f"{self.url}/metrics").text
        samples = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in samples}


@contextmanager
def serving(*flags: str, **environ: str) -> Iterator[Running]:
    """Starts a server, waits until it announces itself, and ends it."""
    with subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--port", "0", "--threads", "1", *flags],
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        running, is_ready = Running(process), threading.Event()
        reader = threading.Thread(target=running.read, args=(is_ready,), daemon=True)
        reader.start()
        try:
            assert is_ready.wait(START_S), "the server did not become ready"
            assert running.url, "".join(running.lines)
            yield running
        finally:
            process.kill()
            process.wait()
            reader.join()


def until(condition: Callable[[], bool], within_s: float = ANSWER_S) -> None:
    """Calls `condition` until it is true; fails after `within_s`."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        threading.Event().wait(0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    make_checkpoint(folder / "uni")
    make_checkpoint(folder / "tuned", kind="sequence-classification", num_labels=2, seed=1)
    make_checkpoint(folder / "reader", family="bert", kind="question-answering", seed=2)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    flags = ("--model", f"uni={folder}/uni", "--model", f"{folder}/tuned", "--labels", "tuned=负面,正面")
    with serving(*flags, "--model", f"{folder}/reader", "--precision", "float32") as running:
        yield running


def all_requests() -> list[tuple[str, dict[str, Any]]]:
    return [(f"/v1/{task}", body) for task, example in EXAMPLES.items() for body in example.requests.values()]


def test_every_task_is_answered(server: Running) -> None:
    with httpx.Client(base_url=server.url, timeout=ANSWER_S) as client:
        for path, body in all_requests():
            response = client.post(path, json=body)
            assert response.status_code == 200, response.text
            is_extractive = path == "/v1/mrc" and "choices" not in body["inputs"][0]
            assert response.json()["model"] == ("reader" if is_extractive else "uni")
            assert response.headers["x-request-id"]
            assert re.fullmatch(r"tokenize;dur=[\d.]+, queue;dur=[\d.]+, compute;dur=[\d.]+", _timing(response))


def _timing(response: httpx.Response) -> str:
    return response.headers["server-timing"]


def test_a_fine_tuned_model_has_the_configured_labels(server: Running) -> None:
    reply = httpx.post(f"{server.url}/v1/classify", json={"inputs": "好吃"}).json()
    assert reply["model"] == "tuned"
    assert {score["label"] for score in reply["results"][0]["scores"]} == {"负面", "正面"}


def test_a_long_passage_is_answered_in_its_own_words(server: Running) -> None:
    passage = "小王每天六点起床😀，\n然后吃早饭，七点半去上班。" * 60
    body = {"inputs": [{"passage": passage, "question": "小王几点去上班？"}], "top_k": 9, "null_threshold": 1000}
    reply = httpx.post(f"{server.url}/v1/mrc", json=body, timeout=ANSWER_S).json()
    [result] = reply["results"]
    assert (result["windows"], result["tokens"]) == (4, reply["usage"]["tokens"])
    assert len(result["candidates"]) == 9
    for span in (result, *result["candidates"]):
        assert span["answer"] == passage[span["start"] : span["end"]]


def test_operations_routes_are_answered(server: Running) -> None:
    assert httpx.get(f"{server.url}/livez").status_code == 200
    assert httpx.get(f"{server.url}/readyz").status_code == 200
    assert "swagger-ui" in httpx.get(f"{server.url}/docs").text
    reply = httpx.get(f"{server.url}/v1/models").json()
    assert [model["name"] for model in reply["models"]] == ["uni", "tuned", "reader"]
    assert [model["precision"] for model in reply["models"]] == [["float32"]] * 3
    assert reply["models"][0]["tasks"] == list(EXAMPLES)
    (replica,) = reply["replicas"]
    assert (replica["name"], replica["device"], replica["state"]) == ("cpu", "cpu", "ready")


@pytest.mark.slow
def test_bench_measures_the_server_and_its_limit(server: Running, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    flags = ["--duration", "3", "--warm-up", "0", "--concurrency", "4", "--limit", "--json", str(file)]
    command = [
        sys.executable,
        "-m",
        "service",
        "bench",
        "--url",
        server.url,
        "--model",
        "uni",
        "--mix",
        "embed",
        *flags,
    ]
    subprocess.run(command, check=True, timeout=120)
    (point,) = json.loads(file.read_text(encoding="utf-8"))["points"]
    assert point["results"]["all"]["outcomes"].keys() == {"200"}
    assert point["batches"]["mean_tokens"] > 0
    assert point["limit"]["served_over_limit"] > 0


def test_an_example_curl_is_printed_at_start(server: Running) -> None:
    assert "curl" in "".join(server.lines)
    assert "好评" in "".join(server.lines)


def test_the_parent_process_does_not_load_torch(server: Running) -> None:
    mapped = {Path(region.path).name for region in psutil.Process(server.process.pid).memory_maps()}
    assert not any("torch" in name for name in mapped)


async def _load(url: str, num_clients: int, num_requests: int, on_start: Callable[[], None]) -> list[httpx.Response]:
    """Clients that each send one request after another, of all tasks in turn."""
    requests = all_requests()
    limits = httpx.Limits(max_connections=num_clients)
    async with httpx.AsyncClient(base_url=url, timeout=ANSWER_S, limits=limits) as client:

        async def one(index: int) -> list[httpx.Response]:
            replies = []
            for turn in range(num_requests):
                path, body = requests[(index + turn) % len(requests)]
                replies.append(await client.post(path, json=body))
                on_start()
            return replies

        answered = await asyncio.gather(*(one(index) for index in range(num_clients)))
    return [reply for replies in answered for reply in replies]


def test_requests_of_twenty_clients_share_batches_and_leave_the_queue_empty(server: Running) -> None:
    before = server.metrics()
    replies = asyncio.run(_load(server.url, 20, 10, lambda: None))
    assert [reply.status_code for reply in replies] == [200] * 200
    after = server.metrics()

    def grown(name: str) -> float:
        return after[name] - before[name]

    assert grown('erlangshen_batch_rows_sum{model="uni"}') > grown('erlangshen_batch_rows_count{model="uni"}')
    assert after["erlangshen_queue_jobs"] == after["erlangshen_queue_tokens"] == 0
    assert after['erlangshen_batch_budget_tokens{model="uni"}'] >= 64
    assert after['erlangshen_predicted_cost_seconds{model="uni",of="token"}'] > 0
    assert sum(grown(name) for name in after if name.startswith("erlangshen_requests_total")) == 200
    assert after['erlangshen_requests_in_progress{task="classify"}'] == 0


def test_every_request_is_answered_when_a_worker_process_is_killed(server: Running) -> None:
    restarts = 'erlangshen_replica_restarts_total{replica="cpu"}'
    before = server.metrics()[restarts]
    (child,) = server.children()
    killed = threading.Event()

    def kill_once() -> None:
        if not killed.is_set():
            killed.set()
            child.kill()

    replies = asyncio.run(_load(server.url, 10, 10, kill_once))
    assert len(replies) == 100
    assert {reply.status_code for reply in replies} <= {200, 503}
    assert all("retry-after" in reply.headers for reply in replies if reply.status_code == 503)
    until(lambda: httpx.get(f"{server.url}/readyz").status_code == 200)
    assert server.metrics()[restarts] == before + 1
    assert httpx.post(f"{server.url}/v1/embed", json={"inputs": "好"}, timeout=ANSWER_S).status_code == 200


LONG = {"inputs": ["好" * (200 + number) for number in range(200)]}


def test_a_disconnect_cancels_the_jobs_of_the_client(server: Running) -> None:
    cancelled = 'erlangshen_jobs_dropped_total{reason="cancelled"}'
    before = server.metrics()[cancelled]
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port or 80)) as client:
        body = json.dumps(LONG).encode()
        client.sendall(b"POST /v1/embed HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        until(lambda: server.metrics()["erlangshen_queue_jobs"] > 0)
    until(lambda: server.metrics()[cancelled] > before)
    until(lambda: server.metrics()["erlangshen_queue_jobs"] == 0)
    assert server.metrics()['erlangshen_requests_total{code="499",model="none",task="embed"}'] == 1


def test_a_missed_deadline_is_answered_with_504(server: Running) -> None:
    response = httpx.post(f"{server.url}/v1/embed", json=LONG | {"timeout_ms": 1}, timeout=ANSWER_S)
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")


def test_sigterm_answers_running_requests_and_exits_with_0(folder: Path) -> None:
    with serving("--model", f"uni={folder}/uni", "--log-format", "json") as server:
        children = server.children()
        replies: list[httpx.Response] = []
        sender = threading.Thread(
            target=lambda: replies.append(httpx.post(f"{server.url}/v1/embed", json=LONG, timeout=ANSWER_S))
        )
        sender.start()
        until(lambda: server.metrics()['erlangshen_requests_in_progress{task="embed"}'] == 1 or bool(replies))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(ANSWER_S) == 0
        sender.join(ANSWER_S)
        assert [reply.status_code for reply in replies] == [200]
        assert not any(child.is_running() for child in children)
    assert not any("Traceback" in line for line in server.lines)


def test_readiness_fails_during_the_drain_delay(folder: Path) -> None:
    with serving("--model", f"uni={folder}/uni", ERLANGSHEN_SERVER__DRAIN_DELAY_S="3") as server:
        server.process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
        assert httpx.post(f"{server.url}/v1/embed", json={"inputs": "好"}).status_code == 200
        assert server.process.wait(ANSWER_S) == 0


def test_pickled_weights_are_converted_once(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "pickled", file_format="bin", num_layers=1)
    flags = ("--model", str(model), "--weight-cache-dir", str(tmp_path / "cache"), "--log-format", "json")
    flags += ("--runtime", "torch")  # each runtime has a form of its own, and both are as fast for so small a model
    for is_first in (True, False):
        with serving(*flags) as server:
            reply = httpx.post(f"{server.url}/v1/embed", json={"inputs": "好"}, timeout=ANSWER_S)
        assert reply.status_code == 200
        messages = [json.loads(line)["message"] for line in server.lines if line.startswith("{")]
        assert ("weights converted" in messages) is is_first
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1


def _fail(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--port", "http"), ("server.port", "http", "integer")),
        (("--model", "./nowhere", "--port", "0"), ("./nowhere", "no such directory")),
        (("--model", "IDEA-CCNL/Nothing", "--offline", "--port", "0"), ("IDEA-CCNL/Nothing", "offline")),
        (("--config", "nowhere.toml"), ("nowhere.toml", "No such file")),
        (("--model", "a=./x", "--model", "a=./y"), ("two models are called a",)),
        (("--model", "a=./x", "--labels", "b=x,y"), ("b is not served", "the served models are a")),
        (("frobnicate",), ("unknown command 'frobnicate'",)),
    ],
)
def test_a_startup_error_prints_one_line_and_exits_with_2(flags: tuple[str, ...], words: tuple[str, ...]) -> None:
    completed = _fail(*flags)
    assert completed.returncode == 2
    assert "Traceback" not in completed.stderr
    (line,) = [line for line in completed.stderr.splitlines() if line.startswith("error: ")]
    assert all(word in line for word in words)


def test_the_error_of_a_port_in_use_names_the_flag(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        completed = _fail("--model", f"{folder}/uni", "--port", str(port))
    assert completed.returncode == 2
    assert (
        f"error: cannot listen on 127.0.0.1 port {port}: Address already in use; choose another with --port"
        in completed.stderr
    )


def test_help_and_version_do_not_import_torch() -> None:
    code = (
        "import sys; from service.cli import main; main(['--help']); main(['--version']);"
        "from service.commands import serving;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=START_S, check=False
    )
    assert completed.returncode == 0, completed.stderr
    assert "serve" in completed.stdout
    assert "erlangshen-service 0." in completed.stdout
