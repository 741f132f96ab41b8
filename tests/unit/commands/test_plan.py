"""`python -m service plan` with speeds from a file and from a server, and its errors."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from service.commands import plan

SPEED = {
    "model": "m",
    "device": "cpu",
    "precision": "bfloat16",
    "batch_s": 0.001,
    "token_s": 0.0001,
    "row_s": 0.0,
    "budget": 500,
}
PAGE = """erlangshen_replica_model_info{replica="cpu",model="m",device="cpu",precision="bfloat16"} 1.0
erlangshen_batch_budget_tokens{model="m"} 500.0
erlangshen_predicted_cost_seconds{model="m",of="batch"} 0.001
erlangshen_predicted_cost_seconds{model="m",of="token"} 0.0001
erlangshen_predicted_cost_seconds{model="m",of="row"} 0.0
"""
TARGET = ("--rate", "300", "--tokens", "fixed:50", "--p95-ms", "100")


@pytest.fixture
def speeds(tmp_path: Path) -> Path:
    file = tmp_path / "speeds.json"
    file.write_text(json.dumps({"speeds": [SPEED]}))
    return file


@contextmanager
def server(key: str) -> Iterator[str]:
    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_authorized = self.path == "/metrics" and self.headers["authorization"] == f"Bearer {key}"
            self.send_response(200 if is_authorized else 401)
            self.end_headers()
            self.wfile.write(PAGE.encode() if is_authorized else b"")

        def log_message(self, format: str, *args: Any) -> None:
            """No-op: keeps the test's output clean."""

    with HTTPServer(("127.0.0.1", 0), Metrics) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
            thread.join()


def test_plan_prints_the_number_of_replicas(speeds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.run(["--speeds", str(speeds), *TARGET, "--json", str(tmp_path / "out.json")]) == 0
    out = capsys.readouterr().out
    assert "m on cpu in bfloat16: 1 ms a batch, 100 µs a token, 0 µs a row; up to 500 tokens a batch" in out
    assert "one replica: 9,804 tokens/s, 196.1 of these requests/s" in out
    assert "replicas: 2; with one spare for a failure or an update: 3" in out
    report = json.loads((tmp_path / "out.json").read_text())
    assert (report["replicas"], report["services"], report["speed"]) == (2, 1, SPEED)
    assert [point["replicas"] for point in report["points"]] == [1, 2, 3]
    assert report["points"][0]["p95"] is None


def test_a_target_that_cannot_be_met_is_reported(speeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.run(["--speeds", str(speeds), "--rate", "1", "--tokens", "fixed:100", "--p95-ms", "5"]) == 1
    assert "no number of replicas is enough" in capsys.readouterr().out


def test_plan_sends_the_key_of_the_key_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("secret\n")
    with server("secret") as url:
        assert plan.run(["--url", url, "--key-file", str(key_file), *TARGET]) == 0
        assert "one replica: 9,804 tokens/s" in capsys.readouterr().out
        assert plan.run(["--url", url, *TARGET]) == 2
        assert "GET /metrics answers 401" in capsys.readouterr().err


def test_a_missing_file_or_server_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.run(["--speeds", str(tmp_path / "none.json"), *TARGET]) == 2
    assert "none.json" in capsys.readouterr().err
    assert plan.run(["--url", "http://127.0.0.1:1", *TARGET]) == 2
    assert "error: http://127.0.0.1:1: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [["--url", "localhost:8000"], ["--key-file", "none/key"], ["--json", "none/out.json"]]
)
def test_invalid_flags_are_refused(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        plan.parse_args([*TARGET, *flags])
    assert exited.value.code == 2
