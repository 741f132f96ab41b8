"""vLLM's pooling API: classify, score and pooling, and the root paths that it shares."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from tests.contract.fakes import HIDDEN, FakeSubmit, Service, running
from tests.contract.protocols import both, classifier, reranker

pytestmark = pytest.mark.anyio


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with running(*both(), classifier()) as service:
        yield service


@pytest.mark.parametrize("path", ["/classify", "/v1/classify", "/vllm/classify", "/vllm/v1/classify"])
async def test_classify_has_the_probabilities_in_the_order_of_the_classes(service: Service, path: str) -> None:
    reply = (await service.post(path, {"model": "tuned", "input": ["好吃", "电池"]})).json()
    assert (reply["object"], reply["model"], len(reply["data"])) == ("list", "tuned", 2)
    first = reply["data"][0]
    assert (first["index"], first["label"], first["num_classes"]) == (0, "好", 2)
    assert first["probs"] == pytest.approx([0.731, 0.269], abs=1e-3)
    assert reply["usage"]["prompt_tokens"] == reply["usage"]["total_tokens"] == 8
    assert reply["id"].startswith("classify-")


async def test_without_activation_the_outputs_of_the_head_are_sent(service: Service) -> None:
    reply = (await service.post("/classify", {"input": "好吃", "use_activation": False})).json()
    first, second = reply["data"][0]["probs"]
    assert first - second == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("body", "protocol"),
    [
        ({"inputs": "好吃", "labels": ["美食", "体育"]}, "native"),
        ({"input": "好吃", "labels": ["美食", "体育"]}, "jina"),
        ({"input": "好吃"}, "vllm"),
    ],
)
async def test_the_body_decides_whose_v1_classify_it_is(service: Service, body: Any, protocol: str) -> None:
    reply = (await service.post("/v1/classify", body)).json()
    keys = {"native": "results", "jina": "data", "vllm": "created"}
    assert keys[protocol] in reply
    assert ("predictions" in str(reply)) is (protocol == "jina")


@pytest.mark.parametrize(
    ("path", "body", "names"),
    [
        ("/v1/classify", {"inputs": "好", "input": "好"}, ("native", "vllm")),
        ("/v1/classify", {"inputs": "好", "input": "好", "labels": ["好"]}, ("native", "jina")),
        ("/rerank", {"query": "好", "texts": ["好"], "documents": ["好"]}, ("tei", "vllm")),
    ],
)
async def test_an_ambiguous_body_is_refused_with_both_names(
    service: Service, path: str, body: Any, names: tuple[str, str]
) -> None:
    response = await service.post(path, body)
    assert response.status_code == 422
    assert response.json()["detail"].startswith(f"the body fits {' and '.join(names)}, which share {path}; send it to")


@pytest.mark.parametrize(
    ("names", "one", "others", "count"),
    [
        (("text_1", "text_2"), "好", "吃", 1),
        (("text_1", "text_2"), "好", ["吃", "好"], 2),
        (("queries", "documents"), ["好", "吃"], ["吃", "好"], 2),
        (("queries", "items"), ["好"], ["吃", "好", "差"], 3),
        (("data_1", "data_2"), "好", ["吃"], 1),
    ],
)
async def test_score_takes_one_text_and_many_or_as_many(
    service: Service, names: tuple[str, str], one: Any, others: Any, count: int
) -> None:
    for path in ("/score", "/v1/score", "/vllm/score"):
        reply = (await service.post(path, {names[0]: one, names[1]: others})).json()
        assert [each["index"] for each in reply["data"]] == list(range(count))
        assert [each["score"] for each in reply["data"]] == pytest.approx([1.0] * count)


async def test_a_cross_encoder_scores_pairs() -> None:
    async with running(reranker("identity"), *both(), submit=FakeSubmit(num_labels=1)) as service:
        reply = (await service.post("/score", {"text_1": "好", "text_2": ["吃", "差"]})).json()
    assert reply["model"] == "reranker"
    assert [each["score"] for each in reply["data"]] == [0.0, 0.0]


async def test_pooling_has_vectors_of_an_embedding_model_as_floats_or_base64(service: Service) -> None:
    floats = (await service.post("/pooling", {"model": "e5", "input": ["好吃", "电池"]})).json()
    assert [len(one["data"]) for one in floats["data"]] == [HIDDEN, HIDDEN]
    assert (floats["data"][0]["object"], floats["object"]) == ("pooling", "list")
    encoded = (await service.post("/pooling", {"model": "e5", "input": [[7, 8]], "encoding_format": "base64"})).json()
    numbers = np.frombuffer(base64.b64decode(encoded["data"][0]["data"]), dtype="<f4")
    assert numbers.tolist() == pytest.approx(floats["data"][0]["data"])


async def test_pooling_has_probabilities_of_a_classifier(service: Service) -> None:
    reply = (await service.post("/pooling", {"model": "tuned", "input": "好吃"})).json()
    assert reply["data"][0]["data"] == pytest.approx([0.731, 0.269], abs=1e-3)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/classify", {"input": "好" * 600}, "input[0]: takes at least 600 tokens"),
        ("/classify", {"input": "好", "normalize": True}, "normalize"),
        ("/classify", {"input": "好", "truncate_prompt_tokens": 10}, "must be -1 or at least 512"),
        ("/score", {"text_1": ["好", "差"], "text_2": ["好"]}, "text_1: has 2 texts and text_2 1"),
        ("/vllm/score", {"text_1": "好"}, "two sides are required"),
        ("/score", {"text_1": "好", "text_2": ["好", "吃" * 900]}, "text_2[1]: takes at least"),
        ("/score", {"text_1": "好", "text_2": ["好", "好", "吃" * 900]}, "text_2[2]: takes at least"),
        ("/pooling", {"input": "好", "task": "token_embed"}, "task: must be 'embed' or 'classify'"),
        ("/pooling", {"input": [[7]], "model": "tuned"}, "input: must be texts for a classifier"),
    ],
)
async def test_an_error_has_message_and_status(service: Service, path: str, body: Any, message: str) -> None:
    response = await service.post(path, body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (422, 422, "BadRequestError")
    assert message in error["message"]


async def test_a_text_is_cut_on_request_and_unknown_fields_are_ignored(service: Service) -> None:
    body = {"input": "好" * 600, "truncate_prompt_tokens": -1, "truncation_side": "left", "top_k": 5}
    assert (await service.post("/classify", body)).status_code == 200
    assert service.submit.calls[-1][0].truncated
