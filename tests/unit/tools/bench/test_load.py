"""Load: reproducible requests, mixes by weight, closed and open loop, and whole runs against a fake server."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from itertools import islice
from typing import Any

import pytest

from service.tools.bench.client import Client, Response
from service.tools.bench.load import BODIES, Load, Request, Run, mixed_requests, parse_mix, requests_of
from service.tools.bench.measure import Plan, measure
from service.tools.bench.report import Window, format_report, summarize
from service.tools.bench.texts import Corpus, Lengths, make_corpus
from tests.unit.tools.bench.serving import MODELS, Answer, Service, serving, silent


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_corpus(Lengths.parse("fixed:20"), 1)


def first_of(corpus: Corpus, task: str, num: int, num_inputs: int, seed: int = 1) -> list[Request]:
    return list(islice(requests_of(corpus, task, num_inputs, "mini", random.Random(seed)), num))


@pytest.mark.parametrize("task", BODIES)
def test_requests_are_the_same_for_the_same_seed(corpus: Corpus, task: str) -> None:
    first, again, other = (first_of(corpus, task, 5, 3, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    body = json.loads(first[0].body)
    assert (len(body["inputs"]), body["model"]) == (3, "mini")


def test_a_mix_draws_tasks_by_weight(corpus: Corpus) -> None:
    drawn = islice(mixed_requests(corpus, {"embed": 3.0, "mrc": 1.0}, 1, None, seed=1), 4000)
    counts = Counter(request.task for request in drawn)
    assert counts["embed"] / counts["mrc"] == pytest.approx(3, rel=0.15)


def test_a_text_repeats_only_after_all_have_been_sent() -> None:
    corpus = Corpus("", [f"第{number}条" for number in range(100)], [])
    drawn = islice(mixed_requests(corpus, {"embed": 1.0}, 5, None, seed=1), 40)
    texts = [text for request in drawn for text in json.loads(request.body)["inputs"]]
    assert sorted(texts[:100]) == sorted(corpus.texts)
    assert texts[:100] != corpus.texts
    assert texts[100:] == texts[:100]


def test_rows_in_flight_at_a_high_load_are_all_different() -> None:
    corpus = make_corpus(Lengths.parse("lognormal:31:152"), 1)
    drawn = islice(mixed_requests(corpus, {"similarity": 1.0}, 8, None, seed=1), 256)
    pairs = [tuple(pair) for request in drawn for pair in json.loads(request.body)["inputs"]]
    assert len(set(pairs)) == len(pairs) == 256 * 8


def test_every_fill_mask_text_has_one_mask(corpus: Corpus) -> None:
    requests = first_of(corpus, "fill-mask", 20, 1)
    assert all(request.body.count(b"[MASK]") == 1 for request in requests)


def test_a_mix_is_weights_of_known_tasks() -> None:
    assert parse_mix("mrc,similarity=0,zero-shot=2.5") == {"mrc": 1.0, "zero-shot": 2.5}
    for wrong in ("nothing=1", "mrc=0", "mrc=-1"):
        with pytest.raises(ValueError, match="wanted TASK=WEIGHT"):
            parse_mix(wrong)


MIX = parse_mix("zero-shot=4,classify=2,similarity=3,mrc=1")


async def run(answer: Answer, corpus: Corpus, *loads: Load, mix: dict[str, float] = MIX, inputs: int = 1) -> Any:
    plan = Plan(loads, mix, duration_s=0.2, warm_up_s=0.0, num_inputs=inputs)
    async with serving(answer) as port, asyncio.timeout(30):
        client = Client("127.0.0.1", port)
        report = await measure(client, plan, corpus, silent)
        client.close()
    assert json.loads(json.dumps(report)) == report
    return report


async def test_closed_loop_counts_answers_and_omits_unsupported_tasks(corpus: Corpus) -> None:
    report = await run(Service(), corpus, Load("concurrency", 4), inputs=2)
    (point,) = report["points"]
    assert set(point["results"]) == {"all", "zero-shot", "similarity", "mrc"}
    assert report["left_out"] == {"classify": "the server answers 422: no head"}
    row = point["results"]["all"]
    assert row["outcomes"] == {"200": row["requests"]}
    assert row["requests"] > 0
    assert row["tokens_per_s"] == pytest.approx(10 * row["inputs_per_s"]) == pytest.approx(20 * row["requests_per_s"])
    assert report["method"].startswith("closed loop")
    assert (report["models"], report["answered_by"]) == (MODELS, ["fake"])


async def test_batches_are_counted_within_the_measurement(corpus: Corpus) -> None:
    report = await run(Service(), corpus, Load("concurrency", 2), inputs=3)
    batches = report["points"][0]["batches"]
    assert batches["batches"] > 0
    assert (batches["mean_rows"], batches["mean_tokens"], batches["mean_compute_s"]) == (3.0, 30.0, 0.001)
    rows = batches["batches"] * batches["mean_rows"]
    assert report["points"][0]["not_computed"] == {"shared_rows": rows / 2, "cache_hit_rows": pytest.approx(rows / 5)}
    assert f"{rows / 2:.0f} rows shared" in format_report(report)


async def test_a_sweep_measures_every_load_in_turn(corpus: Corpus) -> None:
    report = await run(Service(), corpus, Load("concurrency", 1), Load("concurrency", 3))
    assert [point["load"] for point in report["points"]] == ["concurrency 1", "concurrency 3"]
    assert [point["concurrency"] for point in report["points"]] == [1, 3]
    assert format_report(report).count("zero-shot") == 2, "one table of the tasks per load"


async def test_open_loop_keeps_every_request_and_counts_refusals(corpus: Corpus) -> None:
    seen: Counter[str] = Counter()
    service = Service()

    def busy(path: str, body: Any) -> tuple[int, Any]:
        seen[path] += 1
        return (429, {}) if path == "/v1/similarity" and seen[path] > 1 else service(path, body)

    report = await run(busy, corpus, Load("rate", 200), mix=parse_mix("zero-shot=1,similarity=1"))
    results = report["points"][0]["results"]
    assert set(results["zero-shot"]["outcomes"]) == {"200"}
    assert set(results["similarity"]["outcomes"]) == {"429"}
    assert results["similarity"]["latency_ms"] is None
    assert "similarity" in format_report(report)
    assert results["all"]["requests"] == seen["/v1/similarity"] + seen["/v1/classify"] - 2  # the two probes


async def test_latency_counts_from_the_scheduled_send_time(corpus: Corpus) -> None:
    requests = mixed_requests(corpus, {"zero-shot": 1.0}, 1, None, 1)
    ticks: list[int] = []
    async with serving(Service()) as port:
        client = Client("127.0.0.1", port)
        run = Run(client, requests, 30, lambda seconds, number: ticks.append(number))
        await run.send(time.perf_counter() - 5)
        client.close()
    assert run.samples[0].is_answered
    assert run.samples[0].latency_s > 5
    assert ticks == [1]


class SlowClient:
    """A client with a simulated clock whose server takes three seconds per request."""

    def __init__(self) -> None:
        self.now_s = 0.0

    async def send(self, method: str, path: str, body: bytes) -> Response:
        self.now_s += 3.0
        return Response(200, b'{"usage": {"tokens": 7}}')


async def test_a_closed_loop_keeps_requests_that_cross_the_window(corpus: Corpus) -> None:
    slow, ticks = SlowClient(), list[tuple[float, int]]()
    requests = mixed_requests(corpus, {"embed": 1.0}, 1, None, 1)
    run = Run(slow, requests, 30, lambda *tick: ticks.append(tick), lambda: slow.now_s)  # type: ignore[arg-type]
    run.window = Window(2.0, 10.0)
    await run.closed(1)
    assert [(sample.started_s, sample.ended_s) for sample in run.samples] == [(0, 3), (3, 6), (6, 9), (9, 12)]
    assert ticks == [(1.0, 1), (4.0, 2), (7.0, 3)]
    row = summarize(run.samples, run.window)["all"]
    assert (row["requests_per_s"], row["tokens_per_s"], row["requests"]) == (3 / 8, 21 / 8, 3)


async def test_the_error_of_a_server_without_supported_tasks_has_the_reasons(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="classify: the server answers 422"):
        await run(Service(), corpus, Load("concurrency", 1), mix={"classify": 1.0})


async def test_a_refusal_without_a_detail_is_reported_by_its_status(corpus: Corpus) -> None:
    service = Service()
    answer: Answer = lambda path, body: (501, "<html>") if path == "/v1/mrc" else service(path, body)  # noqa: E731
    report = await run(answer, corpus, Load("concurrency", 1), mix={"mrc": 1.0, "embed": 1.0})
    assert report["left_out"] == {"mrc": "the server answers 501"}


async def test_another_kind_of_server_is_refused(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="is this an Erlangshen Service"):
        await run(lambda path, body: (404, {}), corpus, Load("concurrency", 1))


@pytest.mark.parametrize("page", [(404, ""), (200, "<html>")])
async def test_a_server_without_metrics_is_measured_without_batches(corpus: Corpus, page: tuple[int, str]) -> None:
    service = Service()
    answer: Answer = lambda path, body: page if path == "/metrics" else service(path, body)  # noqa: E731
    report = await run(answer, corpus, Load("concurrency", 1))
    assert report["points"][0]["batches"] is None
    assert report["points"][0]["results"]["all"]["requests"] > 0
