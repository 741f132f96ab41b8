"""A choice model and an embedding model that decide together, in a real server on random checkpoints."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from service.tasks.blend import SHIPPED_BLEND
from tests.checkpoints import make_checkpoint
from tests.sentence_folders import make_embedding_model
from tests.support.servers import until
from tests.system.test_serve import Running, serving

pytestmark = pytest.mark.system

LABELS = ["今天", "天气", "很好"]
WAIT_S = 60
NUM_TEMPLATES = len(json.loads(SHIPPED_BLEND.read_text(encoding="utf-8"))["templates"])


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("models")
    choice = make_checkpoint(folder / "choice", kind="masked-lm")
    embedder = make_embedding_model(folder / "embedder", normalize=True)
    with serving("--model", f"choice={choice}", "--model", f"embedder={embedder}") as running:
        yield running


def classify(service: Running, **changes: Any) -> dict[str, Any]:
    body = {"inputs": "今天天气很好", "labels": LABELS} | changes
    reply = httpx.post(f"{service.url}/v1/classify", json=body, timeout=120, trust_env=False)
    assert reply.status_code == 200, reply.text
    answered: dict[str, Any] = reply.json()
    return answered


def label_cache(service: Running, what: str) -> float:
    return service.metrics()[f'erlangshen_label_cache_{what}_total{{model="embedder"}}']


def test_the_vectors_of_labels_are_computed_once(service: Running) -> None:
    before = label_cache(service, "misses")
    replies = [classify(service, inputs=f"今天{number}", labels=[*LABELS, "天"]) for number in range(20)]
    assert {(reply["method"], *reply["models"]) for reply in replies} == {("blend", "choice", "embedder")}
    assert label_cache(service, "misses") - before == 4 * NUM_TEMPLATES
    assert [reply["usage"]["label_tokens"] > 0 for reply in replies] == [True] + 19 * [False]


def test_the_same_request_has_the_same_answer_and_each_model_alone_another(service: Running) -> None:
    blended = classify(service)
    assert blended == classify(service)
    assert blended["usage"]["tokens"] == blended["results"][0]["tokens"]
    for method, model in (("choice", "choice"), ("embedding", "embedder")):
        alone = classify(service, method=method)
        assert (alone["method"], alone["model"], alone["models"]) == (method, model, [model])
        assert alone["results"] != blended["results"]
    assert classify(service, model="choice")["method"] == "choice"


def test_requests_are_answered_when_the_worker_process_is_killed_with_their_rows(service: Running) -> None:
    texts = [f"天气{number}今天" for number in range(4)]
    labels = [*LABELS, "今"]
    (worker,) = service.children()
    worker.suspend()
    with ThreadPoolExecutor(len(texts)) as threads:
        sent = [threads.submit(classify, service, inputs=text, labels=labels) for text in texts]
        in_progress = 'erlangshen_requests_in_progress{task="classify"}'
        asyncio.run(until(lambda: service.metrics()[in_progress] == len(texts), WAIT_S))
        worker.kill()
        answered = [each.result()["results"][0]["scores"] for each in sent]
    asyncio.run(until(lambda: httpx.get(f"{service.url}/readyz", trust_env=False).status_code == 200, WAIT_S))
    for text, scores in zip(texts, answered, strict=True):
        again = classify(service, inputs=text, labels=labels)["results"][0]["scores"]
        assert [each["label"] for each in scores] == [each["label"] for each in again]
        assert [each["score"] for each in scores] == pytest.approx([each["score"] for each in again], abs=1e-4)
    assert service.metrics()['erlangshen_replica_losses_total{reason="killed",replica="cpu"}'] == 1
