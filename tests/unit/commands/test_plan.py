"""`python -m service plan` with speeds from a file, a server and a data sheet, both questions, and its errors."""

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
from service.tools.data_sheets import count_weights, estimate_speed

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
COUNTS = """erlangshen_request_inputs_count{task="embed"} 10.0
erlangshen_request_inputs_sum{task="embed"} 10.0
erlangshen_request_inputs_bucket{task="embed",le="1.0"} 10.0
erlangshen_request_inputs_bucket{task="embed",le="+Inf"} 10.0
erlangshen_input_tokens_total{task="embed",model="m"} 500.0
"""
TARGET = ("--rate", "300", "--tokens", "fixed:50", "--p95-ms", "100")


@pytest.fixture
def speeds(tmp_path: Path) -> Path:
    file = tmp_path / "speeds.json"
    file.write_text(json.dumps({"speeds": [SPEED]}))
    return file


@contextmanager
def server(key: str, page: str = PAGE) -> Iterator[str]:
    shape = {"num_layers": 8, "hidden_size": 1000, "ffn_size": 4000}
    answers = {"/metrics": page, "/v1/models": json.dumps({"models": [{"name": "m", **shape}]})}

    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_authorized = self.path in answers and self.headers["authorization"] == f"Bearer {key}"
            self.send_response(200 if is_authorized else 401)
            self.end_headers()
            self.wfile.write(answers[self.path].encode() if is_authorized else b"")

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


def test_the_requests_are_those_that_the_server_has_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, out = tmp_path / "metrics.txt", tmp_path / "out.json"
    page.write_text(PAGE + COUNTS)
    assert plan.run(["--metrics", str(page), "--rate", "300", "--p95-ms", "100", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert (
        "requests: as counted by the server (10 requests), 50 tokens of m each\n  few requests to plan by; let" in text
    )
    assert "embed             100.0%" in text
    report = json.loads(out.read_text())
    assert report["replicas"] == 2
    assert report["wish"]["mean_row_tokens"] == pytest.approx(50, rel=0.02)
    assert report["wish"]["mix"]["tasks"]["embed"]["inputs_per_request"] == 1


def test_flags_that_describe_requests_replace_those_that_were_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "metrics.txt"
    page.write_text(PAGE + COUNTS)
    assert plan.run(["--metrics", str(page), *TARGET]) == 0
    assert "requests: 1 x fixed:50 tokens (mean 50)\n" in capsys.readouterr().out


def test_a_server_without_requests_is_planned_for_the_usual_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "metrics.txt"
    page.write_text(PAGE)
    assert plan.run(["--metrics", str(page), "--rate", "1"]) == 0
    assert "lognormal:31:152 tokens (mean 49); the server has counted none yet" in capsys.readouterr().out


def test_plan_answers_the_inverse_question(speeds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--speeds", str(speeds), "--tokens", "fixed:50", "--p95-ms", "100")
    limit = ("--max-used", "0.5")
    assert plan.run([*flags, *limit, "--replicas", "2", "--json", str(tmp_path / "out.json")]) == 0
    # Full batches of 500 tokens take 0.051 s.
    text = capsys.readouterr().out
    assert "rate: 196.1 requests/s, 9,804 tokens/s; while one replica is lost or updated: 98.04 requests/s" in text
    rate = json.loads((tmp_path / "out.json").read_text())["requests_per_s"]
    assert plan.run([*flags, *limit, "--rate", str(rate)]) == 0
    assert "replicas: 2; with one spare" in capsys.readouterr().out


def test_a_target_that_no_rate_meets_is_reported(speeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.run(["--speeds", str(speeds), "--replicas", "4", "--tokens", "fixed:100", "--p95-ms", "5"]) == 1
    assert "no rate is low enough" in capsys.readouterr().out


def test_the_data_sheet_of_a_gpu_is_marked_as_an_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.run(["--device", "a100", "--model", "1.3B", "--replicas", "1", "--max-used", "0.5"]) == 0
    text = capsys.readouterr().out
    # 2 * 24 * 12 * 2048^2 operations of 0.6 * 312 TFLOP/s.
    assert "1.3B on A100 by its data sheet in bfloat16: 1.55 ms a batch, 12.9 µs a token" in text
    assert "an estimate, not a measurement" in text


def test_a_data_sheet_takes_the_shape_of_a_model_that_the_server_serves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("secret")
    flags = ("--device", "L4", "--replicas", "1", "--max-used", "0.5", "--key-file", str(key_file))
    with server("secret", PAGE + COUNTS) as url:
        assert plan.run(["--url", url, *flags]) == 0
        # 2 * 8 * (4 * 1000^2 + 2 * 1000 * 4000) operations of 0.6 * 121 TFLOP/s.
        text = capsys.readouterr().out
        assert "m on L4 by its data sheet in bfloat16: 0.64 ms a batch, 2.64 µs a token" in text
        assert "50 tokens of m each" in text
        assert plan.run(["--url", url, "--model", "other", *flags]) == 2
        assert "the server has no model 'other'" in capsys.readouterr().err


def test_a_data_sheet_without_the_shape_of_a_model_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.run(["--device", "A100", "--replicas", "4"]) == 2
    assert "--model: wanted 110M, 330M, 1.3B, or --url of a server" in capsys.readouterr().err


def test_a_data_sheet_says_nothing_about_a_small_model() -> None:
    with pytest.raises(ValueError, match="too small for an estimate"):
        estimate_speed("mini", count_weights(4, 256, 1024), "A100")


def test_the_two_questions_exclude_each_other() -> None:
    with pytest.raises(SystemExit) as exited:
        plan.parse_args(["--rate", "1", "--replicas", "1"])
    assert exited.value.code == 2


@pytest.mark.parametrize(
    "flags",
    [
        ["--url", "localhost:8000"],
        ["--max-used", "1.5"],
        ["--device", "abacus"],
        ["--key-file", "none/key"],
        ["--json", "none/out.json"],
    ],
)
def test_invalid_flags_are_refused(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        plan.parse_args([*TARGET, *flags])
    assert exited.value.code == 2
