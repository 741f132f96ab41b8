"""Label Studio's webhook: annotations become examples of a stored label set, which then answers for the project."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from service.api.accounts import Key, hash_of
from service.api.protocols.label_studio_webhook import with_example
from service.api.schemas import LabelSetBody
from service.settings import Server
from service.stores.label_sets import LabelSets
from tests.contract.fakes import Service, running

CONFIG = """
<View>
  <Text name="text" value="$text"/>
  <Choices name="mood" toName="text"><Choice value="好评" alias="pos"/><Choice value="差评"/></Choices>
  <Taxonomy name="kind" toName="text"><Choice value="体育"><Choice value="财经"/></Choice></Taxonomy>
</View>
"""
PATH = "/label-studio/webhook"


def event(action: str = "ANNOTATION_CREATED", text: str = "很好吃", **choices: Any) -> dict[str, Any]:
    """An event as Label Studio sends it."""
    result = [
        {"from_name": name, "to_name": "text", "type": kind, "value": {kind: value}, "id": "x", "origin": "manual"}
        for name, (kind, value) in choices.items()
    ]
    return {
        "action": action,
        "annotation": {"id": 5, "result": result, "was_cancelled": False, "ground_truth": False},
        "task": {"id": 9, "data": {"text": text}},
        "project": {"id": 3, "title": "评论", "label_config": CONFIG},
    }


@pytest.fixture
def label_sets(tmp_path: Path) -> LabelSets[LabelSetBody]:
    parse = partial(LabelSetBody.model_validate, context=Server())
    label_sets = LabelSets(tmp_path, parse, max_sets=10, max_labels=100)
    label_sets.open()
    return label_sets


@pytest.fixture
async def service(label_sets: LabelSets[LabelSetBody]) -> AsyncIterator[Service]:
    async with running(label_sets=label_sets) as service:
        yield service


async def send(service: Service, body: Any, query: str = "") -> Any:
    response = await service.post(PATH + query, body)
    assert response.status_code in (200, 201), response.text
    return response.json()


def test_a_text_is_an_example_of_the_chosen_labels_and_of_no_other() -> None:
    labels = ["甲", {"name": "乙", "description": "第二", "examples": ["旧", "文"]}, {"name": "丙", "examples": ["文"]}]
    assert with_example(labels, "文", {"甲"}, 2) == [
        {"name": "甲", "examples": ["文"]},
        {"name": "乙", "description": "第二", "examples": ["旧"]},
        "丙",
    ]


def test_a_label_keeps_its_newest_examples() -> None:
    [label] = with_example([{"name": "甲", "examples": ["一", "二"]}], "三", {"甲"}, 2)
    assert label["examples"] == ["二", "三"]


async def test_the_first_annotation_makes_the_set_of_the_project(
    service: Service, label_sets: LabelSets[LabelSetBody]
) -> None:
    reply = await send(service, event(mood=("choices", ["pos"])))
    assert reply == {"status": "ok", "label_set": "label-studio-3", "version": 1}
    assert label_sets.get("label-studio-3").content["labels"] == [{"name": "好评", "examples": ["很好吃"]}, "差评"]


async def test_a_changed_annotation_moves_its_text(service: Service, label_sets: LabelSets[LabelSetBody]) -> None:
    await send(service, event(mood=("choices", ["pos"])))
    await send(service, event("ANNOTATION_UPDATED", mood=("choices", ["差评"])))
    assert label_sets.get("label-studio-3").content["labels"] == ["好评", {"name": "差评", "examples": ["很好吃"]}]


async def test_a_deleted_annotation_removes_its_text(service: Service, label_sets: LabelSets[LabelSetBody]) -> None:
    await send(service, event(mood=("choices", ["pos"])))
    await send(service, event("ANNOTATION_DELETED", mood=("choices", ["pos"])))
    assert label_sets.get("label-studio-3").content["labels"] == ["好评", "差评"]


async def test_the_address_names_another_set_and_control(service: Service, label_sets: LabelSets[LabelSetBody]) -> None:
    label_sets.put("topics", {"labels": ["体育/财经", "游戏"], "question": "哪一类？"}, 2, "")
    await send(service, event(kind=("taxonomy", [["体育", "财经"]])), "?label_set=topics&control=kind")
    content = label_sets.get("topics").content
    assert content["labels"] == [{"name": "体育/财经", "examples": ["很好吃"]}, "游戏"]
    assert content["question"] == "哪一类？"


async def test_predictions_of_the_project_use_its_set(service: Service) -> None:
    await send(service, event(mood=("choices", ["pos"])))
    body = {"tasks": [{"id": 1, "data": {"text": "好"}}], "label_config": CONFIG, "project": "3.1795888671"}
    before = len(service.submit.calls)
    reply = await service.post("/label-studio/predict", body)
    assert reply.json()["results"][0]["result"][0]["value"] == {"choices": ["pos"]}
    assert len(service.submit.calls) > before


@pytest.mark.parametrize(
    "body",
    [
        {"action": "PROJECT_UPDATED"},
        {"action": "START_TRAINING", "project": {"id": 3, "label_config": CONFIG}},
        event(text=" ", mood=("choices", ["pos"])),
    ],
)
async def test_other_events_change_nothing(
    service: Service, label_sets: LabelSets[LabelSetBody], body: dict[str, Any]
) -> None:
    assert await send(service, body) == {"status": "ignored"}
    assert label_sets.all() == []


@pytest.mark.parametrize(
    ("change", "query", "message"),
    [
        ({"task": None}, "", "task: is required"),
        ({"project": {"id": 3, "label_config": "<View/>"}}, "", "project.label_config: has no Choices"),
        ({}, "?control=none", "control: the labeling config has no such"),
    ],
)
async def test_an_event_that_cannot_be_read_is_a_422(
    service: Service, change: dict[str, Any], query: str, message: str
) -> None:
    response = await service.post(PATH + query, event(mood=("choices", ["pos"])) | change)
    assert response.status_code == 422
    assert response.json()["error"].startswith(message)


@pytest.mark.parametrize(("scope", "status"), [("admin", 201), ("infer", 403)])
async def test_the_scope_admin_is_needed(label_sets: LabelSets[LabelSetBody], scope: Any, status: int) -> None:
    keys = {"studio": Key(hash=hash_of("secret"), scopes=frozenset({scope}))}
    async with running(label_sets=label_sets, keys=keys) as service:
        body = event(mood=("choices", ["pos"]))
        response = await service.client.post(PATH, json=body, auth=("label-studio", "secret"))
    assert response.status_code == status


async def test_without_storage_the_error_says_what_to_start_it_with() -> None:
    async with running() as service:
        response = await service.post(PATH, event(mood=("choices", ["pos"])))
    assert response.status_code == 404
    assert "--data-dir" in response.json()["error"]
