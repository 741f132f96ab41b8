"""OpenAI: requests of its client for embeddings, models and moderations, and the shape of its errors."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.api.accounts import Key, hash_of
from service.api.schemas import LabelSetBody
from service.errors import QueueFull
from service.settings import Server
from service.stores.label_sets import LabelSets
from tests.contract.fakes import HIDDEN, FakeSubmit, Service, running
from tests.contract.protocols import both, choice, recorded

pytestmark = pytest.mark.anyio
REQUESTS = recorded("openai")
EMBED = "/openai/v1/embeddings"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    sets = LabelSets(tmp_path, partial(LabelSetBody.model_validate, context=Server()), max_sets=9, max_labels=99)
    sets.open()
    sets.put("moderation", {"labels": ["差评", "体育"]}, 2, "", None)
    async with running(*both(), label_sets=sets) as service:
        yield service


def decoded(data: str) -> list[float]:
    numbers: list[float] = np.frombuffer(base64.b64decode(data), dtype="<f4").tolist()
    return numbers


async def test_the_client_gets_base64_as_it_asks_by_default(service: Service) -> None:
    reply = (await REQUESTS["embeddings"].send(service)).json()
    assert decoded(reply["data"][0]["embedding"]) == pytest.approx([8**-0.5] * HIDDEN)
    assert {key: reply["data"][0][key] for key in ("object", "index")} == {"object": "embedding", "index": 0}
    assert (reply["object"], reply["model"], reply["usage"]) == (
        "list",
        "mini",
        {"prompt_tokens": 4, "total_tokens": 4},
    )


async def test_dimensions_cut_each_vector_and_scale_it_again(service: Service) -> None:
    reply = (await REQUESTS["embeddings_many"].send(service)).json()
    assert [decoded(one["embedding"]) for one in reply["data"]] == [pytest.approx([0.5] * 4)] * 2


async def test_floats_are_sent_on_request_and_without_a_format(service: Service) -> None:
    reply = (await REQUESTS["embeddings_float"].send(service)).json()
    assert reply["data"][0]["embedding"] == pytest.approx([8**-0.5] * HIDDEN)
    plain = (await service.post("/v1/embeddings", {"input": "好吃", "model": "mini"})).json()
    assert plain["data"] == reply["data"]


async def test_token_ids_are_read_as_they_are_with_the_special_tokens_around(service: Service) -> None:
    cls, sep = choice().cls, choice().sep
    for name, expected in (
        ("embeddings_ids", [[cls, 7, 8, 9, sep], [cls, 10, sep]]),
        ("embeddings_one_list_of_ids", [[cls, 7, 8, 9, sep]]),
    ):
        assert (await REQUESTS[name].send(service)).status_code == 200
        assert [row.ids.tolist() for row in service.submit.calls[-1]] == expected
    await service.post(EMBED, {"input": [cls, 7, sep], "model": "mini"})
    assert service.submit.calls[-1][0].ids.tolist() == [cls, 7, sep]


async def test_models_are_listed_and_read_at_the_root_and_the_prefix(service: Service) -> None:
    for prefix in ("", "/openai"):
        listed = (await service.client.get(f"{prefix}/v1/models")).json()
        assert listed["object"] == "list"
        assert isinstance(listed["data"], list)
    missing = await service.client.get("/openai/v1/models/none")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_moderations_score_each_label_of_the_stored_set_by_itself(service: Service) -> None:
    reply = (await REQUESTS["moderations"].send(service)).json()
    assert reply["model"] == "moderation"
    assert len(reply["results"]) == 2
    result = reply["results"][0]
    assert list(result["categories"]) == list(result["category_scores"]) == ["差评", "体育"]
    flagged = {label: score >= 0.5 for label, score in result["category_scores"].items()}
    assert (result["categories"], result["flagged"]) == (flagged, any(flagged.values()))


async def test_moderations_take_parts_and_the_name_of_a_label_set_as_model(service: Service) -> None:
    assert len((await REQUESTS["moderations_parts"].send(service)).json()["results"]) == 1
    named = await service.post("/v1/moderations", {"input": "好", "model": "moderation"})
    assert named.status_code == 200
    missing = await service.post("/v1/moderations", {"input": "好", "model": "other"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "label_set_not_found")


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"model": "mini"}, "input", "is required"),
        ({"input": "好"}, "model", "is required"),
        ({"input": [], "model": "mini"}, "input", "at least one input"),
        ({"input": "", "model": "mini"}, "input", "entry 0 must not be empty"),
        ({"input": ["好", 5], "model": "mini"}, "input", "entry 1 must be a string"),
        ({"input": [[1], "好"], "model": "mini"}, "input", "entry 1 must be a list of token ids"),
        ({"input": [[]], "model": "mini"}, "input", "entry 0 must be a list of token ids"),
        ({"input": [[1, True]], "model": "mini"}, "input", "entry 0 must be a list of token ids"),
        ({"input": [[7], [9999]], "model": "mini"}, "input[1]", "token id outside of"),
        ({"input": [[-1]], "model": "mini"}, "input[0]", "token id outside of"),
        ({"input": "好", "model": "mini", "dimensions": 9}, "dimensions", "have 8"),
        ({"input": "好", "model": "mini", "encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
        ({"input": "好", "model": "mini", "nonsense": 1}, "nonsense", "unknown field"),
    ],
)
async def test_an_error_has_its_parameter(service: Service, body: Any, param: str, message: str) -> None:
    response = await service.post(EMBED, body)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (422, "invalid_request_error", "invalid_request")
    assert error["param"] == param
    assert message in error["message"]


async def test_moderations_refuse_images(service: Service) -> None:
    image = {"type": "image_url", "image_url": {"url": "http://example.com/x.png"}}
    response = await service.post("/v1/moderations", {"input": [{"type": "text", "text": "好"}, image]})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (422, "input")
    assert "entry 1 must be a part of type text" in error["message"]


async def test_errors_of_middleware_and_router_have_the_same_shape() -> None:
    keys = {"app": Key(hash=hash_of("s"), requests_per_s=1)}
    async with running(keys=keys) as service:
        send = partial(service.post, EMBED, {"input": "好", "model": "mini"})
        unauthorized = await send()
        answers = [await send(Authorization="Bearer s") for _ in range(2)]
        unknown = await service.client.get("/openai/v1/nowhere", headers={"Authorization": "Bearer s"})
    assert (unauthorized.status_code, unauthorized.json()["error"]["type"]) == (401, "authentication_error")
    assert [one.status_code for one in answers] == [200, 429]
    assert answers[1].json()["error"]["code"] == "rate_limit_exceeded"
    assert float(answers[1].headers["retry-after-ms"]) > 0
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (403, "permission_error")


async def test_a_large_batch_of_token_ids_is_within_the_limits(service: Service) -> None:
    ids = [[7] * 500] * 200
    response = await service.post(EMBED, {"input": ids, "model": "mini", "encoding_format": "base64"})
    assert response.status_code == 200
    assert response.json()["usage"]["total_tokens"] == 200 * 502


async def test_a_full_queue_keeps_its_wait() -> None:
    async with running(submit=FakeSubmit(error=QueueFull("full", retry_after_s=1.5))) as service:
        response = await service.post(EMBED, {"input": "好", "model": "mini"})
    assert (response.status_code, response.headers["retry-after-ms"]) == (429, "1500")
