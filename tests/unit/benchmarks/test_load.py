"""The load script against a small server of its own: what is sent, what is counted, what is left out."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from benchmarks.load import Run, is_loopback, measure, parse_args, parse_mix, per_batch
from benchmarks.report import Sample, summarize, table
from benchmarks.texts import Corpus, make_requests
from benchmarks.wire import Client

Answer = Callable[[str, Any], tuple[int, Any]]
TITLES = ["国足今晚出战世预赛", "央行宣布下调存款利率", "新款手机今日正式发布"]
C3 = [
    [
        ["男：去哪儿？", "女：去图书馆看一会儿书。"],
        [{"question": "女的去哪儿？", "choice": ["图书馆", "超市", "超市"], "answer": "图书馆"}],
        "1",
    ]
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lines = (json.dumps({"id": 1, "sentence": title, "label": "新闻"}, ensure_ascii=False) for title in TITLES)
    (tmp_path / "titles.json").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "c3.json").write_text(json.dumps(C3, ensure_ascii=False), encoding="utf-8")
    (tmp_path / "pairs.tsv").write_text("短\t今天天气怎么样啊\t1\n", encoding="utf-8")
    (tmp_path / "english.csv").write_text("a,b\nno Chinese here,1\n", encoding="utf-8")
    return tmp_path


@asynccontextmanager
async def serving(answer: Answer, *, drops: bool = False) -> AsyncIterator[int]:
    """An HTTP server of a few lines. With `drops` it drops each connection after a reply, without saying so."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await read_head(reader):
            lines = head.decode().split("\r\n")
            length = next(int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length"))
            content = await reader.readexactly(length)
            status, body = answer(lines[0].split(" ")[1], json.loads(content) if content else None)
            payload = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            writer.write(f"HTTP/1.1 {status} Fine\r\nContent-Length: {len(payload)}\r\n\r\n".encode() + payload)
            await writer.drain()
            if drops:
                break
        writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def read_head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


def service(path: str, body: Any) -> tuple[int, Any]:
    """Answers all tasks but classification without labels; every batch of it holds two rows."""
    if path == "/v1/models":
        return 200, {"models": ["fake"]}
    if path == "/metrics":
        return 200, "erlangshen_batch_rows_count 3.0\nerlangshen_batch_rows_sum 6.0\n"
    if path == "/v1/classify" and "labels" not in body:
        return 422, {"detail": "no head"}
    return 200, {"usage": {"tokens": 10 * len(body["inputs"])}, "results": [{} for _ in body["inputs"]]}


async def run(data: Path, port: int, *flags: str) -> dict[str, Any]:
    args = parse_args(["--url", f"http://127.0.0.1:{port}", "--texts", str(data), "--warm-up", "0", *flags])
    return await asyncio.wait_for(measure(args, Corpus.read(data)), 30)


def test_texts_are_the_longest_chinese_strings_and_c3_gives_readings(data: Path) -> None:
    corpus = Corpus.read(data)
    assert set(TITLES) | {"今天天气怎么样啊"} <= set(corpus.texts)
    assert "no Chinese here" not in corpus.texts
    (reading,) = corpus.readings
    assert reading.passage == "男：去哪儿？\n女：去图书馆看一会儿书。"
    assert reading.choices == ("图书馆", "超市")


def test_a_line_separator_inside_a_text_does_not_end_the_record(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"text": "今天天气\u2028非常好"}\n{"text": "明天下不下雨"}\n', encoding="utf-8")
    assert Corpus.read(tmp_path).texts == ["今天天气\u2028非常好", "明天下不下雨"]


def test_a_file_that_is_not_what_it_says_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}\n{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.json: neither JSON nor JSON lines"):
        Corpus.read(tmp_path / "a.json")


@pytest.mark.parametrize("task", ["zero-shot", "classify", "similarity", "mrc"])
def test_requests_are_the_same_for_the_same_seed(data: Path, task: str) -> None:
    corpus = Corpus.read(data)
    first, again, other = (make_requests(corpus, task, 5, 3, "mini", random.Random(seed)) for seed in (1, 1, 2))
    assert first == again
    assert task == "mrc" or first != other
    body = json.loads(first[0].body)
    assert (len(body["inputs"]), body["model"]) == (3, "mini")


async def test_closed_loop_counts_what_was_answered_and_leaves_out_what_cannot_be_done(data: Path) -> None:
    async with serving(service) as port:
        report = await run(data, port, "--duration", "0.2", "--concurrency", "4", "--inputs", "2")
    assert set(report["results"]) == {"all", "zero-shot", "similarity", "mrc"}
    row = report["results"]["all"]
    assert row["outcomes"] == {"200": row["requests"]}
    assert row["requests"] > 0
    assert row["tokens_per_s"] == pytest.approx(10 * row["inputs_per_s"]) == pytest.approx(20 * row["requests_per_s"])
    assert report["method"].startswith("closed loop")
    assert json.loads(json.dumps(report)) == report


async def test_open_loop_keeps_every_request_and_counts_refusals(data: Path) -> None:
    seen: Counter[str] = Counter()

    def busy(path: str, body: Any) -> tuple[int, Any]:
        seen[path] += 1
        return (429, {}) if path == "/v1/similarity" and seen[path] > 1 else service(path, body)

    async with serving(busy) as port:
        report = await run(data, port, "--duration", "0.3", "--rate", "100", "--mix", "zero-shot=1,similarity=1")
    results = report["results"]
    assert set(results["zero-shot"]["outcomes"]) == {"200"}
    assert set(results["similarity"]["outcomes"]) == {"429"}
    assert results["similarity"]["latency_ms"] is None
    assert "similarity" in table(results)
    assert results["all"]["requests"] == seen["/v1/similarity"] + seen["/v1/classify"] - 2  # the two probes


async def test_latency_counts_from_the_moment_a_request_was_meant_to_leave(data: Path) -> None:
    requests = make_requests(Corpus.read(data), "zero-shot", 1, 1, None, random.Random(1))
    async with serving(service) as port:
        client = Client("127.0.0.1", port)
        with closing(tqdm(total=1, disable=True)) as bar:
            run = Run(client, iter(requests), 30, bar)
            await run.send(time.perf_counter() - 5)
        client.close()
    assert run.samples[0].is_answered
    assert run.samples[0].latency_s > 5


async def test_a_connection_that_the_server_dropped_meanwhile_is_replaced() -> None:
    async with serving(lambda path, body: (200, {"path": path}), drops=True) as port:
        client = Client("127.0.0.1", port)
        for _ in range(3):
            assert (await client.send("POST", "/x", b"{}")).status == 200
        client.close()


async def test_no_server_is_an_os_error() -> None:
    async with serving(service) as port:
        pass
    with pytest.raises(ConnectionRefusedError):
        await Client("127.0.0.1", port).send("GET", "/v1/models")


def test_percentiles_are_exact() -> None:
    samples = [Sample("mrc", 0.0, number / 1000, "200", 1, 7) for number in range(101)]
    row = summarize([*samples, Sample("mrc", 0.0, 9.0, "timeout", 1, 0)], 10.0)["mrc"]
    assert row["latency_ms"] == {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "mean": 50.0, "max": 100.0}
    assert row["outcomes"] == {"200": 101, "timeout": 1}
    assert row["tokens_per_s"] == pytest.approx(70.7)


def test_rows_per_batch_come_from_what_the_totals_grew_by() -> None:
    before, after = {"batches": 10.0, "rows": 30.0}, {"batches": 14.0, "rows": 62.0}
    assert per_batch(before, after) == {"batches": 4.0, "mean_rows": 8.0}
    assert per_batch(after, after) is None
    assert per_batch({}, {}) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_may_be_loaded(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("url", ["http://10.0.0.1:8000", "http://example.com", "https://127.0.0.1", "127.0.0.1:8000"])
def test_other_machines_may_not(url: str) -> None:
    with pytest.raises(SystemExit):
        parse_args(["--url", url, "--texts", "."])


def test_a_mix_is_weights_of_known_tasks() -> None:
    assert parse_mix("mrc,similarity=0,zero-shot=2.5") == {"mrc": 1.0, "zero-shot": 2.5}
    for wrong in ("nothing=1", "mrc=0", "mrc=-1"):
        with pytest.raises(Exception, match="wanted TASK=WEIGHT"):
            parse_mix(wrong)
