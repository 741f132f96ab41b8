"""text-embeddings-inference: the shape of each reply, its timing headers, and its errors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.errors import QueueFull
from tests.contract.fakes import HIDDEN, FakeSubmit, Service, running
from tests.contract.protocols import both, choice, classifier, embedder, reranker

pytestmark = pytest.mark.anyio
TEXTS = ["如何修改绑定的手机", "电池"]
RERANK = {"query": "更换手机", "texts": TEXTS}


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with running(*both()) as service:
        yield service


@pytest.mark.parametrize("path", ["/embed", "/tei/embed", "/tei"])
async def test_embed_is_a_list_of_vectors_also_for_one_text(service: Service, path: str) -> None:
    for inputs, count in (("好吃", 1), (["好吃"], 1), (TEXTS, 2)):
        reply = (await service.post(path, {"inputs": inputs})).json()
        assert [len(vector) for vector in reply] == [HIDDEN] * count


async def test_vectors_are_scaled_unless_normalize_is_false(service: Service) -> None:
    for normalize, first in ((True, 8**-0.5), (False, 2.0)):
        reply = await service.post("/embed", {"inputs": "好吃", "normalize": normalize})
        assert reply.json()[0][0] == pytest.approx(first)
    cut = await service.post("/embed", {"inputs": "好吃", "dimensions": 4})
    assert cut.json()[0] == pytest.approx([0.5] * 4)


async def test_replies_have_timing_headers_in_milliseconds(service: Service) -> None:
    headers = (await service.post("/embed", {"inputs": TEXTS})).headers
    assert headers["x-compute-characters"] == str(sum(map(len, TEXTS)))
    assert headers["x-compute-tokens"] == str(sum(len(text) + 2 for text in TEXTS))
    assert (headers["x-queue-time"], headers["x-inference-time"]) == ("2", "30")
    assert {"x-total-time", "x-compute-time", "x-tokenization-time"} <= set(headers)


@pytest.mark.parametrize(
    ("inputs", "num_rows", "is_batch"),
    [
        ("好吃", 1, False),
        (["好吃"], 1, False),
        (["好吃", "电池"], 1, False),
        ([["好吃"]], 1, True),
        ([["好吃"], ["好吃", "电池"]], 2, True),
    ],
)
async def test_predict_takes_a_text_a_pair_or_a_batch(inputs: Any, num_rows: int, is_batch: bool) -> None:
    async with running(classifier()) as service:
        reply = (await service.post("/tei/predict", {"inputs": inputs})).json()
        assert len(service.submit.calls[0]) == num_rows
    found = reply if is_batch else [reply]
    assert [[one["label"] for one in each] for each in found] == [["好", "差"]] * num_rows


@pytest.mark.parametrize("inputs", [[["a", "b", "c"]], ["a", "b", "c"], [[]], [], 5, [["a"], "b"]])
async def test_predict_refuses_other_inputs(inputs: Any) -> None:
    async with running(classifier()) as service:
        response = await service.post("/tei/predict", {"inputs": inputs})
    assert (response.status_code, response.json()["error_type"]) == (422, "Validation")


async def test_raw_scores_differ_as_the_outputs_of_the_head() -> None:
    async with running(classifier()) as service:
        reply = (await service.post("/predict", {"inputs": "好吃", "raw_scores": True})).json()
    assert reply[0]["score"] - reply[1]["score"] == pytest.approx(1.0, abs=1e-5)


async def test_post_to_the_prefix_predicts_where_only_classifiers_are_served() -> None:
    async with running(classifier()) as service:
        reply = (await service.post("/tei", {"inputs": "好吃"})).json()
    assert reply[0]["label"] == "好"


async def test_rerank_is_best_first_with_texts_on_request(service: Service) -> None:
    reply = (await service.post("/rerank", RERANK)).json()
    assert [set(one) for one in reply] == [{"index", "score"}] * 2
    assert reply[0]["score"] >= reply[1]["score"]
    with_texts = (await service.post("/tei/rerank", {**RERANK, "return_text": True})).json()
    assert [one["text"] for one in with_texts] == [TEXTS[one["index"]] for one in with_texts]


async def test_a_cross_encoder_reads_pairs_and_its_raw_score_is_its_output() -> None:
    async with running(*both(), reranker(), submit=FakeSubmit(num_labels=1)) as service:
        scores = [(await service.post("/rerank", {**RERANK, "raw_scores": raw})).json() for raw in (False, True)]
        assert [len(rows) for rows in service.submit.calls] == [2, 2]
    assert [one["score"] for one in scores[0]] == pytest.approx([0.5, 0.5])
    assert [one["score"] for one in scores[1]] == pytest.approx([0.0, 0.0])


async def test_an_embedding_model_reads_query_and_texts_with_their_prompts() -> None:
    async with running(embedder(query="好", passage="差")) as service:
        await service.post("/rerank", RERANK)
        first = [[int(row.ids[1]) for row in rows] for rows in service.submit.calls]
    known = choice().tokenizer.token_to_id
    assert first == [[known("好")], [known("差"), known("差")]]


async def test_similarity_is_one_number_per_sentence(service: Service) -> None:
    body = {"inputs": {"source_sentence": "更换手机", "sentences": TEXTS}, "parameters": {"truncate": True}}
    assert (await service.post("/similarity", body)).json() == pytest.approx([1.0, 1.0])


async def test_tokenize_has_ids_and_places_of_each_token(service: Service) -> None:
    [tokens] = (await service.post("/tokenize", {"inputs": "好吃"})).json()
    known = choice().tokenizer.token_to_id
    assert [one["id"] for one in tokens] == [known("[CLS]"), known("好"), known("吃"), known("[SEP]")]
    assert [(one["start"], one["stop"], one["special"]) for one in tokens] == [
        (None, None, True),
        (0, 1, False),
        (1, 2, False),
        (None, None, True),
    ]
    [bare] = (await service.post("/tokenize", {"inputs": ["好吃"], "add_special_tokens": False})).json()
    assert len(bare) == 2


async def test_info_and_health_answer_without_a_body(service: Service) -> None:
    info = (await service.client.get("/info")).json()
    assert info["max_client_batch_size"] == 256
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (await service.client.get("/health")).status_code == 200
    service.reason.append("loading")
    assert (await service.client.get("/health")).status_code == 503
    assert (await service.post("/tokenize", {"inputs": "好"})).status_code == 503


async def test_unknown_fields_are_ignored_as_by_its_own_server(service: Service) -> None:
    assert (await service.post("/embed", {"inputs": "好吃", "prompt": "x"})).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/embed", {"inputs": "好" * 600, "truncate": False}, "inputs[0]: takes at least 600 tokens"),
        ("/rerank", {"query": "好", "texts": ["吃", "好" * 900], "truncate": False}, "texts[1]: takes at least"),
        ("/rerank", {"query": "好" * 900, "texts": ["吃"], "truncate": False}, "query: takes at least"),
        (
            "/similarity",
            {"inputs": {"source_sentence": "好", "sentences": ["吃", "好" * 900]}, "parameters": {"truncate": False}},
            "inputs.sentences[1]: takes at least",
        ),
        (
            "/similarity",
            {"inputs": {"source_sentence": "好" * 900, "sentences": ["吃"]}, "parameters": {"truncate": False}},
            "inputs.source_sentence: takes at least",
        ),
        ("/tokenize", {"inputs": ["好" * 90_000] * 3}, "inputs: the response would have about"),
        ("/embed", {"inputs": []}, "inputs: must have at least one input"),
        ("/embed", {"inputs": "好", "prompt_name": "none"}, "prompt_name: e5 has no such prompt"),
    ],
)
async def test_an_error_names_the_field_of_the_request(service: Service, path: str, body: Any, error: str) -> None:
    response = await service.post(path, body)
    problem = response.json()
    assert response.status_code == 422
    text = problem.get("error", problem.get("detail"))
    assert error in text


async def test_a_full_queue_is_overloaded_with_retry_after() -> None:
    async with running(submit=FakeSubmit(error=QueueFull("full", retry_after_s=3))) as service:
        response = await service.post("/tei/embed", {"inputs": "好"})
    assert (response.status_code, response.json()["error_type"]) == (429, "Overloaded")
    assert response.headers["retry-after"] == "3"
