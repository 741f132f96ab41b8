"""The loops against a small server: what is sent, what is counted, from when latency counts."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from typing import Any

import pytest

from service.bench.corpus import Corpus
from service.bench.load import Load, Run
from service.bench.measure import Plan, measure
from service.bench.report import shown
from service.bench.requests import make_requests, parse_mix
from service.bench.synthetic import Lengths, make_corpus
from service.bench.wire import Client
from tests.unit.bench.serving import MODELS, Answer, Service, serving, silent

MIX = parse_mix("zero-shot=4,classify=2,similarity=3,mrc=1")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_corpus(Lengths.parse("fixed:20"), 1)


async def run(answer: Answer, corpus: Corpus, *loads: Load, mix: dict[str, float] = MIX, inputs: int = 1) -> Any:
    plan = Plan(loads, mix, duration_s=0.2, warm_up_s=0.0, num_inputs=inputs)
    async with serving(answer) as port, asyncio.timeout(30):
        client = Client("127.0.0.1", port)
        report = await measure(client, plan, corpus, silent)
        client.close()
    assert json.loads(json.dumps(report)) == report
    return report


async def test_closed_loop_counts_what_was_answered_and_leaves_out_what_cannot_be_done(corpus: Corpus) -> None:
    report = await run(Service(), corpus, Load("concurrency", 4), inputs=2)
    (point,) = report["points"]
    assert set(point["results"]) == {"all", "zero-shot", "similarity", "mrc"}
    assert report["left_out"] == {"classify": "the server answers 422"}
    row = point["results"]["all"]
    assert row["outcomes"] == {"200": row["requests"]}
    assert row["requests"] > 0
    assert row["tokens_per_s"] == pytest.approx(10 * row["inputs_per_s"]) == pytest.approx(20 * row["requests_per_s"])
    assert report["method"].startswith("closed loop")
    assert (report["models"], report["answered_by"]) == (MODELS, ["fake"])


async def test_batches_are_those_between_the_measurement_s_ends(corpus: Corpus) -> None:
    report = await run(Service(), corpus, Load("concurrency", 2), inputs=3)
    batches = report["points"][0]["batches"]
    assert batches["batches"] > 0
    assert (batches["mean_rows"], batches["mean_tokens"], batches["mean_compute_s"]) == (3.0, 30.0, 0.001)


async def test_a_sweep_measures_every_load_in_turn(corpus: Corpus) -> None:
    report = await run(Service(), corpus, Load("concurrency", 1), Load("concurrency", 3))
    assert [point["load"] for point in report["points"]] == ["concurrency 1", "concurrency 3"]
    assert [point["concurrency"] for point in report["points"]] == [1, 3]
    assert "concurrency 3" in shown(report)


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
    assert "similarity" in shown(report)
    assert results["all"]["requests"] == seen["/v1/similarity"] + seen["/v1/classify"] - 2  # the two probes


async def test_latency_counts_from_the_moment_a_request_was_meant_to_leave(corpus: Corpus) -> None:
    requests = make_requests(corpus, "zero-shot", 1, 1, None, random.Random(1))
    ticks: list[int] = []
    async with serving(Service()) as port:
        client = Client("127.0.0.1", port)
        run = Run(client, iter(requests), 30, lambda seconds, number: ticks.append(number))
        await run.send(time.perf_counter() - 5)
        client.close()
    assert run.samples[0].is_answered
    assert run.samples[0].latency_s > 5
    assert ticks == [1]


async def test_a_server_that_can_do_nothing_is_an_error_with_its_reasons(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="classify: the server answers 422"):
        await run(Service(), corpus, Load("concurrency", 1), mix={"classify": 1.0})


async def test_another_kind_of_server_is_refused(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="is this an Erlangshen Service"):
        await run(lambda path, body: (404, {}), corpus, Load("concurrency", 1))


async def test_a_server_without_metrics_is_measured_without_batches(corpus: Corpus) -> None:
    service = Service()
    answer: Answer = lambda path, body: (404, "") if path == "/metrics" else service(path, body)  # noqa: E731
    report = await run(answer, corpus, Load("concurrency", 1))
    assert report["points"][0]["batches"] is None
    assert report["points"][0]["results"]["all"]["requests"] > 0
