"""Rerank for the clients of Cohere, Jina and vLLM: under their prefixes, and at the root for all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.domain import RANKS
from service.settings import Server
from tests.contract.fakes import FakeSubmit, Service, running
from tests.contract.protocols import both, choice, recorded, reranker

pytestmark = pytest.mark.anyio
REQUESTS = recorded("cohere")
DOCUMENTS = ["如何修改绑定的手机", "电池多久充满"]
BODY = {"model": "e5", "query": "更换手机", "documents": DOCUMENTS}


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with running(*both()) as service:
        yield service


async def test_v2_has_indices_and_scores_without_documents(service: Service) -> None:
    reply = (await REQUESTS["v2_rerank"].send(service)).json()
    assert [set(one) for one in reply["results"]] == [{"index", "relevance_score"}]
    assert reply["meta"]["api_version"] == {"version": "2"}
    assert reply["meta"]["billed_units"] == {"search_units": 1}
    assert reply["id"]


async def test_a_v2_priority_above_zero_waits_behind_others(service: Service) -> None:
    for name, expected in (("v2_rerank", "interactive"), ("v2_rerank_priority", "bulk")):
        assert (await REQUESTS[name].send(service)).status_code == 200
        assert service.submit.options[-1].priority == RANKS[expected]  # type: ignore[index]


async def test_v1_returns_documents_on_request(service: Service) -> None:
    plain = (await REQUESTS["v1_rerank"].send(service)).json()
    assert [set(one) for one in plain["results"]] == [{"index", "relevance_score"}] * 2
    whole = (await REQUESTS["v1_rerank_documents"].send(service)).json()
    assert [one["document"] for one in whole["results"]] == [
        {"text": DOCUMENTS[one["index"]]} for one in whole["results"]
    ]


async def test_v1_reads_the_rank_fields_of_a_document(service: Service) -> None:
    reply = (await REQUESTS["v1_rerank_fields"].send(service)).json()
    assert {one["document"]["title"] for one in reply["results"]} == {"手机", "电池"}
    missing = await service.post("/cohere/v1/rerank", {**BODY, "documents": [{"title": "好"}]})
    assert missing.json()["message"] == "documents[0].text: is required; name those to read in rank_fields"


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank", "/vllm/v1/rerank", "/jina/v1/rerank"])
async def test_one_reply_serves_all_clients_at_the_root(service: Service, path: str) -> None:
    response = await service.post(path, {**BODY, "top_n": 1, "unknown": True})
    reply = response.json()
    assert response.status_code == 200
    assert [set(one) for one in reply["results"]] == [{"index", "relevance_score", "document"}]
    assert reply["results"][0]["document"] == {"text": DOCUMENTS[reply["results"][0]["index"]]}
    assert (reply["model"], reply["object"]) == ("e5", "list")
    assert reply["usage"]["total_tokens"] == reply["meta"]["tokens"]["input_tokens"] > 0


async def test_documents_may_be_objects_with_text_and_left_out_of_the_reply(service: Service) -> None:
    body = {**BODY, "documents": [{"text": DOCUMENTS[0]}, DOCUMENTS[1]], "return_documents": False, "top_n": 0}
    reply = (await service.post("/jina/v1/rerank", body)).json()
    assert [set(one) for one in reply["results"]] == [{"index", "relevance_score"}] * 2


@pytest.mark.parametrize("names", [("cohere",), ("jina",), ("vllm",)])
async def test_the_root_path_is_there_with_any_of_the_protocols(names: tuple[str, ...]) -> None:
    async with running(*both(), settings=Server(protocols=names)) as service:
        assert (await service.post("/v1/rerank", BODY)).status_code == 200


async def test_without_protocols_the_root_path_is_not_there() -> None:
    async with running(*both(), settings=Server(protocols=("none",))) as service:
        response = await service.post("/v1/rerank", BODY)
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


async def test_a_cross_encoder_goes_first_where_no_model_is_named() -> None:
    async with running(*both(), reranker(), submit=FakeSubmit(num_labels=1)) as service:
        body = {"query": "更换手机", "documents": DOCUMENTS}
        assert (await service.post("/v1/rerank", body)).json()["model"] == "reranker"


async def test_a_choice_model_ranks_where_no_other_is_served() -> None:
    async with running(choice()) as service:
        reply = (await service.post("/v1/rerank", {"query": "更换手机", "documents": DOCUMENTS})).json()
    assert reply["model"] == "mini"
    assert all(0 <= one["relevance_score"] <= 1 for one in reply["results"])


@pytest.mark.parametrize(
    ("path", "change", "status", "message"),
    [
        ("/cohere/v2/rerank", {"model": "rerank-v4"}, 404, "model: not served"),
        ("/cohere/v2/rerank", {"unknown": 1}, 422, "unknown: unknown field"),
        ("/cohere/v2/rerank", {"top_n": 0}, 422, "top_n: must be at least 1"),
        ("/cohere/v2/rerank", {"relevant_spans": {"mode": "enabled"}}, 422, "relevant_spans: is not supported"),
        ("/cohere/v2/rerank", {"max_tokens_per_doc": 100}, 422, "must be at least 512"),
        ("/cohere/v1/rerank", {"documents": [""]}, 422, "documents[0].text: must not be empty"),
        ("/cohere/v2/rerank", {"documents": ["好"] * 300}, 422, "documents: has 300 inputs; at most 256"),
    ],
)
async def test_an_error_of_cohere_has_a_message(
    service: Service, path: str, change: Any, status: int, message: str
) -> None:
    response = await service.post(path, BODY | change)
    assert response.status_code == status
    assert message in response.json()["message"]


async def test_an_error_of_jina_has_a_detail(service: Service) -> None:
    response = await service.post("/jina/v1/rerank", {"query": "好"})
    assert (response.status_code, response.json()["detail"]) == (422, "documents: is required")
    labels = {"input": ["好吃"], "labels": ["好", "好"]}
    assert "labels: entry 1 repeats" in (await service.post("/jina/v1/classify", labels)).json()["detail"]


async def test_jina_classifies_by_the_labels_of_the_request(service: Service) -> None:
    body = {"input": ["好吃", {"text": "电池"}], "labels": ["美食", "体育"]}
    reply = (await service.post("/jina/v1/classify", body)).json()
    assert [[one["label"] for one in each["predictions"]] for each in reply["data"]] == [["美食", "体育"]] * 2
    assert reply["data"][0]["prediction"] in ("美食", "体育")
