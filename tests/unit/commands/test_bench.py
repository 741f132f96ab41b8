"""`python -m service bench`: its flags, output, report and exit code."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from service import cli
from service.commands import bench
from service.host import is_loopback
from service.tools.bench.load import Load
from tests.unit.tools.bench.serving import Service, serving


async def test_bench_prints_a_table_and_writes_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    flags = ["--duration", "0.2", "--warm-up", "0", "--concurrency", "1,2", "--lengths", "fixed:8", "--json", str(file)]
    async with serving(Service()) as port:
        code = await asyncio.to_thread(bench.run, ["--url", f"http://127.0.0.1:{port}", *flags])
    assert code == 0
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["command"].startswith("python -m service bench --url")
    assert report["command"].endswith("--json FOLDER/report.json")
    assert {"date", "commit", "machine"} <= set(report)
    assert set(report["versions"]) == {"service", "python", "torch", "uvloop", "numpy"}
    assert [point["load"] for point in report["points"]] == ["concurrency 1", "concurrency 2"]
    out = capsys.readouterr().out
    assert "concurrency 2" in out
    assert "generated texts, fixed:8 characters" in out
    assert "classify is left out: the server answers 422: no head" in out


async def test_bench_without_a_server_prints_one_line_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(Service()) as port:
        pass
    assert await asyncio.to_thread(bench.run, ["--url", f"http://127.0.0.1:{port}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: http://127.0.0.1:{port}: ")


def test_unreadable_texts_print_one_line_and_exit_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.json"
    file.write_text("{")
    assert cli.main(["bench", "--texts", str(file)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {file}:1: neither JSON nor JSON lines: ")


async def test_the_report_is_written_when_the_limit_cannot_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(report: object, model: object) -> None:
        raise ValueError("no such precision here")

    monkeypatch.setattr(bench, "add_limits", refuse)
    file = tmp_path / "report.json"
    flags = ["--duration", "0.1", "--warm-up", "0", "--mix", "embed", "--limit", "--json", str(file)]
    async with serving(Service()) as port:
        assert await asyncio.to_thread(bench.run, ["--url", f"http://127.0.0.1:{port}", *flags]) == 1
    assert json.loads(file.read_text(encoding="utf-8"))["points"]
    assert "error: no such precision here" in capsys.readouterr().err


def test_rate_and_concurrency_accept_lists() -> None:
    assert list(bench.loads_of(bench.parse_args(["--rate", "5,7.5"]))) == [Load("rate", 5.0), Load("rate", 7.5)]
    assert list(bench.loads_of(bench.parse_args(["--concurrency", "1,8"]))) == [
        Load("concurrency", 1),
        Load("concurrency", 8),
    ]
    assert list(bench.loads_of(bench.parse_args([]))) == [Load("concurrency", 16)]


@pytest.mark.parametrize(
    "flags",
    [
        ["--rate", "0"],
        ["--concurrency", "1,x"],
        ["--concurrency", "1.5"],
        ["--duration", "nan"],
        ["--lengths", "lognormal:9:3"],
        ["--mix", "nothing=1"],
        ["--rate", "1", "--concurrency", "1"],
        ["--url", "http://10.0.0.1:8000"],
        ["--url", "http://example.com"],
        ["--url", "https://127.0.0.1"],
        ["--url", "127.0.0.1:8000"],
        ["--url", "http://10.0.0.1", "--allow-remote", "--limit"],
        ["--json", "no-such-folder/report.json"],
        ["--json", "tests"],
        ["--plot", "no-such-folder/sweep.png"],
    ],
)
def test_invalid_flags_are_refused(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        bench.parse_args(flags)
    assert exited.value.code == 2


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_addresses_are_recognised(host: str) -> None:
    assert is_loopback(host)
