"""Label Studio's ML backend, with requests as Label Studio 1.x sends them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.api.accounts import Key, hash_of
from service.settings import Server
from tests.contract.fakes import FakeSubmit, Service, running

CHOICES = '<Choices name="mood" toName="text"><Choice value="好评" alias="pos"/><Choice value="差评"/></Choices>'
MULTIPLE = CHOICES.replace("<Choices", '<Choices choice="multiple"')
BRANCH = '<Choice value="体育"><Choice value="财经"/></Choice>'
TAXONOMY = f'<Taxonomy name="topic" toName="text">{BRANCH}<Choice value="游戏"/></Taxonomy>'
PAIRWISE = '<Text name="a" value="$a"/><Text name="b" value="$b"/><Pairwise name="better" toName="a,b"/>'
TEXT = '<Text name="text" value="$text"/>'


def request(*data: dict[str, Any], config: str = TEXT + CHOICES) -> dict[str, Any]:
    return {
        "tasks": [
            {"id": index, "data": each, "annotations": [], "predictions": [], "file_upload": None}
            for index, each in enumerate(data)
        ],
        "model_version": "erlangshen",
        "project": "1.1795888671",
        "label_config": f"<View>{config}</View>",
        "params": {"login": None, "password": "secret", "context": None},
    }


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with running() as service:
        yield service


async def predict(service: Service, body: Any) -> Any:
    response = await service.post("/label-studio/predict", body)
    assert response.status_code == 200, response.text
    return response.json()["results"]


async def test_choices_are_annotated_with_their_confidence(service: Service) -> None:
    [first, second] = await predict(service, request({"text": "好吃"}, {"text": "差"}))
    score = first["score"]
    assert 0.5 < score < 1
    assert first == {
        "result": [
            {"from_name": "mood", "to_name": "text", "type": "choices", "value": {"choices": ["pos"]}, "score": score}
        ],
        "score": score,
        "model_version": "mini",
    }
    assert second["result"][0]["value"] == {"choices": ["pos"]}


async def test_several_choices_are_those_above_one_half(service: Service) -> None:
    [prediction] = await predict(service, request({"text": "好吃"}, config=TEXT + MULTIPLE))
    native = await service.post("/v1/classify", {"inputs": "好吃", "labels": ["好评", "差评"], "multi_label": True})
    scores = native.json()["results"][0]["scores"]
    expected = [{"好评": "pos"}.get(each["label"], each["label"]) for each in scores if each["score"] >= 0.5]
    found = prediction["result"][0]["value"]["choices"] if prediction["result"] else []
    assert found == expected


async def test_a_taxonomy_is_annotated_with_a_path(service: Service) -> None:
    [prediction] = await predict(service, request({"text": "好吃"}, config=TEXT + TAXONOMY))
    assert prediction["result"][0]["type"] == "taxonomy"
    assert prediction["result"][0]["value"] == {"taxonomy": [["体育", "财经"]]}


async def test_of_a_pair_the_text_nearer_to_the_header_is_selected() -> None:
    class Nearer(FakeSubmit):
        """Of two pairs the second is more alike."""

        async def __call__(self, encodings: Any, options: Any = None) -> Any:
            result = await super().__call__(encodings, options)
            for index, output in enumerate(result.outputs):
                output.scores[:] = 0
                output.scores[index % 2] = 5
            return result

    config = f'<Header value="好吃"/>{PAIRWISE}'
    async with running(submit=Nearer()) as service:
        [prediction] = await predict(service, request({"a": "差", "b": "很好吃"}, config=config))
    [annotation] = prediction["result"]
    assert (annotation["to_name"], annotation["type"], annotation["value"]) == (
        "a",
        "pairwise",
        {"selected": "right"},
    )
    assert annotation["score"] > 0.5


async def test_a_pair_of_equal_texts_is_left_to_the_annotators(service: Service) -> None:
    [prediction] = await predict(
        service, request({"a": "好", "b": "好", "q": "吃"}, config=f'<Text name="q" value="$q"/>{PAIRWISE}')
    )
    assert prediction == {"result": [], "score": 0.0, "model_version": "mini"}


async def test_the_score_of_a_task_is_the_lowest_of_its_controls(service: Service) -> None:
    [prediction] = await predict(service, request({"text": "好吃"}, config=TEXT + CHOICES + TAXONOMY))
    assert len(prediction["result"]) == 2
    assert prediction["score"] == min(each["score"] for each in prediction["result"])


@pytest.mark.parametrize("data", [{}, {"text": ""}, {"text": 3}, {"other": "好"}])
async def test_a_task_without_a_text_gets_an_empty_prediction(service: Service, data: dict[str, Any]) -> None:
    first, second = await predict(service, request(data, {"text": "好"}))
    assert (first["result"], len(second["result"])) == ([], 1)


async def test_a_url_in_a_task_is_text_and_is_not_fetched(service: Service) -> None:
    await predict(service, request({"text": "http://127.0.0.1:1/secret"}))
    await service.post("/v1/classify", {"inputs": "http://127.0.0.1:1/secret", "labels": ["好评", "差评"]})
    studio, native = service.submit.calls
    assert studio[0].ids.tolist() == native[0].ids.tolist()


async def test_more_tasks_than_inputs_of_a_request_are_answered_in_parts() -> None:
    async with running(settings=Server(max_inputs=2)) as service:
        results = await predict(service, request(*({"text": "好"} for _ in range(5))))
    assert [len(call) for call in service.submit.calls] == [2, 2, 1]
    assert len(results) == 5


async def test_a_text_that_is_refused_is_named_by_its_task() -> None:
    async with running(settings=Server(max_chars=3, max_inputs=2)) as service:
        body = request({}, {"text": "好"}, {"text": "好"}, {"text": "好好好好"})
        response = await service.post("/label-studio/predict", body)
    assert response.status_code == 422
    assert response.json()["error"].startswith("tasks[3].data")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('<Image name="i" value="$i"/><RectangleLabels name="r" toName="i"/>', "it has RectangleLabels"),
        ('<Text name="text" value="$u" valueType="url"/>' + CHOICES, "this server fetches none"),
        (PAIRWISE, "a third Text, or a Header"),
        (TEXT + CHOICES.replace("差评", "好评"), "label_config: Choices mood"),
    ],
)
async def test_a_config_that_cannot_be_filled_in_is_a_422(service: Service, config: str, message: str) -> None:
    response = await service.post("/label-studio/predict", request({"text": "好", "a": "好", "b": "吃"}, config=config))
    assert response.status_code == 422
    assert message in response.json()["error"]


async def test_setup_checks_the_config(service: Service) -> None:
    body = {"project": "1.1", "schema": f"<View>{TEXT}{CHOICES}</View>", "hostname": "http://x", "access_token": "t"}
    response = await service.post("/label-studio/setup", body)
    assert response.json() == {"model_version": "erlangshen"}
    refused = await service.post("/label-studio/setup", body | {"schema": "<View/>"})
    assert refused.status_code == 422


@pytest.mark.parametrize(("password", "status"), [("secret", 200), ("other", 401)])
async def test_the_password_of_basic_credentials_is_the_key(password: str, status: int) -> None:
    async with running(keys={"studio": Key(hash=hash_of("secret"))}) as service:
        auth = ("label-studio", password)
        response = await service.client.post("/label-studio/predict", json=request({"text": "好"}), auth=auth)
    assert response.status_code == status


async def test_health_is_up(service: Service) -> None:
    assert (await service.client.get("/label-studio/health")).json()["status"] == "UP"


async def test_at_the_root_the_tasks_tell_the_protocol(service: Service) -> None:
    response = await service.post("/predict", request({"text": "好"}))
    assert len(response.json()["results"]) == 1
