"""A real server on a GPU: the shipped models answer as they do on a CPU, and go on when the worker process dies."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
import torch

from tests.support.servers import Server, serving

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.system,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TOLERANCE = 0.03
"""Of a score; the GPU computes in bfloat16."""
LEAST_COSINE = 0.995

PASSAGE = "小王每天早上六点起床，先跑步半个小时，然后吃早饭，七点半坐地铁去公司上班。"
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/classify": {"inputs": ["中国女排三比零战胜对手", "股市今日大涨" * 40], "labels": ["体育", "财经", "教育"]},
    "/v1/similarity": {"inputs": [["怎么更换绑定的手机号？", "绑定的手机号如何修改"], ["今天下雨", "股票跌了"]]},
    "/v1/mrc": {
        "inputs": [{"passage": PASSAGE, "question": "小王怎么去上班？", "choices": ["坐地铁", "开车", "骑车"]}]
    },
    "/v1/nli": {"inputs": [["一个男人在公园里弹吉他。", "有人在演奏乐器。"]]},
    "/v1/fill-mask": {"inputs": ["北京是中国的首[MASK]。"], "top_k": 2},
}


@pytest.fixture(scope="module")
def cpu() -> Iterator[Server]:
    with serving("--devices", "cpu", "--threads", "4", "--precision", "float32") as server:
        yield server


@pytest.fixture(scope="module", params=["none", "int8", "fp8"])
def gpu(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serving("--devices", "cuda:0", "--quantization", request.param) as server:
        yield server


def post(server: Server, path: str, body: dict[str, Any]) -> Any:
    answer = httpx.post(server.url + path, json=body, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()


def scores_of(document: Any) -> list[float]:
    """Every number between 0 and 1 that a result calls a score, in order."""
    if isinstance(document, dict):
        own = [value for key, value in document.items() if key == "score" and isinstance(value, float)]
        return own + [score for value in document.values() for score in scores_of(value)]
    if isinstance(document, list):
        return [score for each in document for score in scores_of(each)]
    return []


@pytest.mark.parametrize("path", REQUESTS)
def test_scores_are_those_of_a_cpu(cpu: Server, gpu: Server, path: str) -> None:
    wanted, found = (scores_of(post(server, path, REQUESTS[path])["results"]) for server in (cpu, gpu))
    assert wanted
    assert sorted(found) == pytest.approx(sorted(wanted), abs=TOLERANCE)


def test_embeddings_have_the_directions_of_a_cpu(cpu: Server, gpu: Server) -> None:
    body = {"inputs": ["今天天气怎么样？", "明天会下雨吗", "股市今日大涨" * 50]}
    pairs = zip(*(post(server, "/v1/embed", body)["results"] for server in (cpu, gpu)), strict=True)
    for ours, theirs in pairs:
        a, b = ours["embedding"], theirs["embedding"]
        assert sum(map(math.prod, zip(a, b, strict=True))) / (math.hypot(*a) * math.hypot(*b)) > LEAST_COSINE


def test_a_killed_worker_is_replaced_and_the_answers_are_the_same(gpu: Server) -> None:
    path = "/v1/classify"
    before = post(gpu, path, REQUESTS[path])
    [worker, *_] = sorted(gpu.process.children(), key=lambda child: child.memory_info().rss, reverse=True)
    worker.kill()
    psutil.wait_procs([worker], 10)
    while (answer := httpx.post(gpu.url + path, json=REQUESTS[path], timeout=60, trust_env=False)).status_code == 503:
        gpu.await_ready()
    assert worker not in gpu.process.children()
    assert scores_of(answer.json()) == pytest.approx(scores_of(before), abs=TOLERANCE)
