"""Embedding models over HTTP: prompts, the fields that may be null, similarity by the cosine, and their errors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.checkpoints.sentence_modules import EmbeddingSpec
from service.domain import Cls, Mean, Pooled
from tests.contract.fakes import HIDDEN, Service, running, text_model
from tests.fakes import value

PROMPTS = {"query": "没有：", "passage": "一个："}
SPEC = EmbeddingSpec(
    ("cls", "max"), normalize=True, dimensions=2 * HIDDEN, max_length=12, prompts=PROMPTS, default_prompt_name="query"
)
EMBEDDER = text_model("embedder", "encoder", tasks=("embed",), embedding=SPEC)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with running(text_model("mini"), EMBEDDER) as service:
        yield service


@pytest.mark.parametrize("body", [{}, {"pooling": None, "normalize": None, "prompt": None, "prompt_name": None}])
async def test_an_embedding_model_answers_as_it_declares(service: Service, body: dict[str, Any]) -> None:
    reply = (await service.post("/v1/embed", {"inputs": "好吃", **body})).json()
    assert reply["model"] == "embedder"
    [row] = service.submit.calls[0]
    assert row.readout == Pooled(("cls", "max"))
    assert (row.num_tokens, reply["results"][0]["tokens"]) == (7, 7)
    assert reply["results"][0]["embedding"] == pytest.approx([0.25] * 2 * HIDDEN)


async def test_a_request_overrides_what_the_model_declares(service: Service) -> None:
    body = {"inputs": "好吃", "pooling": "cls", "normalize": False, "prompt": ""}
    reply = (await service.post("/v1/embed", body)).json()
    [row] = service.submit.calls[0]
    assert (row.readout, row.num_tokens) == (Cls(), 4)
    assert reply["results"][0]["embedding"] == [2.0] * HIDDEN


async def test_another_model_takes_the_text_of_a_prompt(service: Service) -> None:
    await service.post("/v1/embed", {"inputs": "好吃", "prompt": "一", "model": "mini"})
    [row] = service.submit.calls[0]
    assert (row.readout, row.num_tokens) == (Mean(), 5)


@pytest.mark.parametrize(
    ("path", "body", "field", "message"),
    [
        (
            "/v1/embed",
            {"inputs": "好", "prompt_name": "document"},
            "prompt_name",
            "embedder has no such prompt; its prompts are query, passage",
        ),
        (
            "/v1/embed",
            {"inputs": "好", "prompt_name": "query", "model": "mini"},
            "prompt_name",
            "mini has no such prompt; it declares none; send `prompt`",
        ),
        (
            "/v1/embed",
            {"inputs": "好", "prompt_name": "query", "prompt": ""},
            "prompt_name",
            "cannot be combined with prompt",
        ),
        ("/v1/embed", {"inputs": "好", "prompt": "好" * 2001}, "prompt", "must be at most 2000 characters long"),
        (
            "/v1/embed",
            {"inputs": "好", "prompt": "好" * 10},
            "prompt",
            "takes at least 10 tokens; at most 9 leave room",
        ),
        ("/v1/embed", {"inputs": "好", "pooling": "median"}, "pooling", "must be 'cls', 'max', 'mean'"),
        (
            "/v1/similarity",
            {"source": "好" * 20, "candidates": ["好"], "model": "embedder", "truncation": "error"},
            "source",
            "takes at least",
        ),
        (
            "/v1/similarity",
            {"source": "好", "candidates": ["好", "好" * 20], "model": "embedder", "truncation": "error"},
            "candidates[1]",
            "takes at least",
        ),
        (
            "/v1/similarity",
            {"inputs": [["好", "好" * 20]], "model": "embedder", "truncation": "error"},
            "inputs[0][1]",
            "takes at least",
        ),
        (
            "/v1/similarity",
            {"inputs": [["好", "吃"]], "model": "mini", "prompt_name": "query"},
            "model",
            "mini (masked-lm) cannot do this; similarity needs a masked LM (UniMC), a model fine-tuned for similarity, "
            "or an embedding model; with a prompt, the latter",
        ),
        (
            "/v1/similarity",
            {"inputs": [["好", "吃"]], "prompt_name": "query", "prompt": "好"},
            "prompt_name",
            "cannot be combined with prompt",
        ),
    ],
)
async def test_an_error_names_the_field(
    service: Service, path: str, body: dict[str, Any], field: str, message: str
) -> None:
    response = await service.post(path, body)
    assert response.status_code == 422
    [error] = response.json()["errors"]
    assert error["field"] == field
    assert error["message"].startswith(message)


async def test_a_pair_is_one_input_of_two_rows(service: Service) -> None:
    body = {"source": "好吃", "candidates": ["难吃", "一般"], "model": "embedder"}
    reply = (await service.post("/v1/similarity", body)).json()
    assert [len(rows) for rows in service.submit.calls] == [4]
    assert reply["results"] == 2 * [{"score": pytest.approx(1.0), "tokens": 14, "truncated": False}]
    assert reply["usage"]["tokens"] == 28
    assert value(service.metrics, "inputs_total", task="similarity", model="embedder") == 2
    assert value(service.metrics, "input_tokens_total", task="similarity", model="embedder") == 28
    assert value(service.metrics, "request_inputs_sum", task="similarity") == 2


async def test_similarity_prefers_a_model_that_reads_both_texts(service: Service) -> None:
    reply = (await service.post("/v1/similarity", {"inputs": [["好吃", "难吃"]]})).json()
    assert (reply["model"], reply["method"]) == ("mini", "choice")
    reply = (await service.post("/v1/similarity", {"inputs": [["好吃", "难吃"]], "prompt_name": "passage"})).json()
    assert (reply["model"], reply["method"]) == ("embedder", "embedding")
