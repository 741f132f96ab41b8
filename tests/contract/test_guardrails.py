"""Guardrails: requests as litellm 1.110.2 and Dify send them, answered by a stored label set."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service.api.schemas import LabelSetBody
from service.settings import Server
from service.stores.label_sets import LabelSets
from tests.contract.fakes import Service, running

LITELLM = "/beta/litellm_basic_guardrail_api"
DIFY = "/guardrails/dify"


@pytest.fixture
def label_sets(tmp_path: Path) -> LabelSets[LabelSetBody]:
    sets = LabelSets(tmp_path, LabelSetBody.model_validate, max_sets=10, max_labels=100)
    sets.open()
    sets.put("policy", {"labels": ["差评", "投诉"]}, 2, "")
    return sets


@pytest.fixture
async def service(label_sets: LabelSets[LabelSetBody]) -> AsyncIterator[Service]:
    async with running(label_sets=label_sets) as service:
        yield service


def litellm(*texts: str, **given: Any) -> dict[str, Any]:
    return {
        "input_type": "request",
        "litellm_call_id": None,
        "litellm_trace_id": None,
        "structured_messages": None,
        "images": None,
        "tools": None,
        "texts": list(texts),
        "request_data": {},
        "request_headers": {"authorization": "[present]"},
        "litellm_version": "1.110.2",
        "additional_provider_specific_params": {"label_set": "policy", **given},
        "tool_calls": None,
        "model": None,
    }


def dify_input(query: str | None = "很好吃", **inputs: Any) -> dict[str, Any]:
    return {"point": "app.moderation.input", "params": {"app_id": "61248ab4", "inputs": inputs, "query": query}}


async def scores_of(service: Service, text: str) -> dict[str, float]:
    native = await service.post("/v1/classify", {"inputs": text, "label_set": "policy", "multi_label": True})
    return {each["label"]: each["score"] for each in native.json()["results"][0]["scores"]}


async def test_a_text_at_the_threshold_is_blocked_with_its_labels(service: Service) -> None:
    scores = await scores_of(service, "很差")
    response = await service.post(LITELLM, litellm("很差", threshold=max(scores.values()), allowed=["投诉"]))
    assert response.json() == {"action": "BLOCKED", "blocked_reason": f"flagged as 差评 ({scores['差评']:.2f})"}


async def test_a_text_below_the_threshold_passes(service: Service) -> None:
    scores = await scores_of(service, "很差")
    response = await service.post(LITELLM, litellm("很差", threshold=max(scores.values()) + 0.001))
    assert response.json() == {"action": "NONE"}


@pytest.mark.parametrize("texts", [[], [""], [" "]])
async def test_nothing_to_check_passes(service: Service, texts: list[str]) -> None:
    assert (await service.post(LITELLM, litellm(*texts, threshold=0.01))).json() == {"action": "NONE"}


async def test_labels_that_are_allowed_are_not_flagged(service: Service) -> None:
    body = litellm("很差", threshold=0.01, allowed=["差评", "投诉"])
    assert (await service.post(LITELLM, body)).json() == {"action": "NONE"}


async def test_the_response_can_be_given(service: Service) -> None:
    body = litellm("很差", threshold=0.01, response="不可以")
    assert (await service.post(LITELLM, body)).json() == {"action": "BLOCKED", "blocked_reason": "不可以"}


async def test_more_texts_than_inputs_of_a_request_are_checked_in_parts(label_sets: LabelSets[LabelSetBody]) -> None:
    async with running(label_sets=label_sets, settings=Server(max_inputs=2)) as service:
        await service.post(LITELLM, litellm("一", "二", "三"))
        assert [len(call) for call in service.submit.calls] == [2, 1]


@pytest.mark.parametrize(
    ("given", "status", "message"),
    [
        ({"label_set": "nope"}, 404, "there is no such set"),
        ({"threshold": 0}, 422, "threshold"),
        ({"threshold": "high"}, 422, "threshold"),
        ({"allowed": "差评"}, 422, "allowed"),
    ],
)
async def test_a_wrong_rule_is_an_error_and_no_verdict(service: Service, given: Any, status: int, message: str) -> None:
    response = await service.post(LITELLM, litellm("很差", **given))
    assert response.status_code == status
    assert message in response.json()["error"]


async def test_without_a_rule_that_of_the_settings_applies(label_sets: LabelSets[LabelSetBody]) -> None:
    settings = Server(moderation_label_set="policy", moderation_threshold=0.01)
    async with running(label_sets=label_sets, settings=settings) as service:
        body = litellm("很差") | {"additional_provider_specific_params": {}}
        assert (await service.post(LITELLM, body)).json()["action"] == "BLOCKED"
        assert (await service.post(DIFY, dify_input())).json()["flagged"] is True


async def test_dify_gets_a_pong(service: Service) -> None:
    assert (await service.post(DIFY, {"point": "ping"})).json() == {"result": "pong"}


async def test_dify_checks_the_query_and_the_variables(service: Service) -> None:
    await service.post(f"{DIFY}?label_set=policy", dify_input(var_1="很差", number=3, empty=""))
    [rows] = service.submit.calls
    assert len(rows) == 2


@pytest.mark.parametrize(
    "body", [dify_input(), {"point": "app.moderation.output", "params": {"app_id": "61248ab4", "text": "很差"}}]
)
async def test_dify_shows_the_response_for_a_flagged_text(service: Service, body: Any) -> None:
    query = "?label_set=policy&threshold=0.01&response=%E4%B8%8D%E5%8F%AF%E4%BB%A5"
    assert (await service.post(f"{DIFY}{query}", body)).json() == {
        "flagged": True,
        "action": "direct_output",
        "preset_response": "不可以",
    }


async def test_dify_lets_other_texts_pass(service: Service) -> None:
    response = await service.post(f"{DIFY}?label_set=policy&threshold=1", dify_input())
    assert response.json() == {"flagged": False, "action": "direct_output", "preset_response": ""}


@pytest.mark.parametrize(
    ("query", "body", "message"),
    [
        ("?label_set=policy&threshold=x", dify_input(), "threshold"),
        ("?label_set=policy&threshold=nan", dify_input(), "threshold"),
        ("?label_set=policy", {"point": "app.external_data_tool.query", "params": {}}, "point"),
        ("?label_set=policy", {"point": "app.moderation.output", "params": {}}, "text"),
    ],
)
async def test_what_dify_sends_wrong_is_a_422(service: Service, query: str, body: Any, message: str) -> None:
    response = await service.post(f"{DIFY}{query}", body)
    assert response.status_code == 422
    assert message in response.json()["error"]
