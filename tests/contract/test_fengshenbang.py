"""The API of Fengshenbang-LM's own server, by its schema (`fengshen/API`)."""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import QueueFull
from service.settings import Server
from tests.contract.fakes import FakeSubmit, Service, running, text_model

PATH = "/TextClassification"
CLASSIFIER = text_model("mine", "sequence-classification", labels=("差评", "好评"))


async def classify(service: Service, body: dict[str, Any], path: str = PATH) -> Any:
    response = await service.post(path, body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_the_reply_is_the_best_label_of_each_text() -> None:
    async with running(CLASSIFIER) as service:
        reply = await classify(service, {"input_text": ["好吃", "差"], "uuid": 3, "input_image": None, "skip_steps": 1})
        native = (await service.post("/v1/classify", {"inputs": ["好吃", "差"]})).json()["results"]
    assert reply == [{"label": one["label"], "score": one["score"]} for one in native]


async def test_a_separator_makes_a_pair() -> None:
    async with running(CLASSIFIER) as service:
        await classify(service, {"input_text": ["好吃[SEP]差"]})
        await service.post("/v1/classify", {"inputs": [{"text": "好吃", "text_pair": "差"}]})
    ours, native = service.submit.calls
    assert ours[0].ids.tolist() == native[0].ids.tolist()


async def test_another_path_is_served_instead() -> None:
    async with running(CLASSIFIER, settings=Server(fengshenbang_path="/api/Sentiment")) as service:
        assert len(await classify(service, {"input_text": ["好"]}, "/api/Sentiment")) == 1
        assert (await service.post(PATH, {"input_text": ["好"]})).status_code == 404


@pytest.mark.parametrize("path", ["", "/", "relative", "/{name}", "/a b", "/a/"])
def test_a_path_with_other_characters_is_no_setting(path: str) -> None:
    with pytest.raises(ValueError, match="fengshenbang_path"):
        Server(fengshenbang_path=path)


@pytest.mark.parametrize(
    ("body", "location"),
    [({"input_text": [""]}, "input_text[0].text"), ({}, "input_text"), ({"input_text": "好"}, "input_text")],
)
async def test_a_field_at_fault_is_named_as_fastapi_does(body: Any, location: str) -> None:
    async with running(CLASSIFIER) as service:
        response = await service.post(PATH, body)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", location]


async def test_without_a_classifier_the_error_says_what_is_needed() -> None:
    async with running() as service:
        response = await service.post(PATH, {"input_text": ["好"]})
    assert "a fine-tuned classifier" in response.json()["detail"][0]["msg"]


async def test_a_refusal_keeps_its_status_and_retry_after() -> None:
    async with running(CLASSIFIER, submit=FakeSubmit(error=QueueFull("full", retry_after_s=3))) as service:
        response = await service.post(PATH, {"input_text": ["好"]})
    assert (response.status_code, response.headers["retry-after"], response.json()) == (429, "3", {"detail": "full"})
