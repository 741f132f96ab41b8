"""KServe v1 and the Open Inference Protocol v2, with a request as tritonclient 2.73.0 sends it."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest

from service.domain import RANKS
from service.errors import QueueFull
from service.settings import Server
from service.tasks.registry import TASKS
from tests.contract.fakes import HIDDEN, FakeSubmit, Service, running, text_model

HEADER_LENGTH = "Inference-Header-Content-Length"
RECORDED = (
    b'{"id":"42","inputs":[{"name":"text","shape":[2],"datatype":"BYTES","parameters":{"binary_data_size":20}},'
    b'{"name":"labels","shape":[2],"datatype":"BYTES","data":["\\u597D\\u8BC4","\\u5DEE\\u8BC4"]}],'
    b'"parameters":{"priority":2,"timeout":5000000,"binary_data_output":true}}'
    b"\x06\x00\x00\x00\xe5\xa5\xbd\xe5\x90\x83\x06\x00\x00\x00\xe9\x9a\xbe\xe5\x90\x83"
)
RECORDED_HEADERS = {"User-Agent": "python/gevent-http-client-2.6.1", HEADER_LENGTH: "266"}


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with running() as service:
        yield service


def body(parameters: dict[str, Any] | None = None, outputs: list[Any] | None = None, **texts: list[str]) -> Any:
    inputs = [{"name": name, "shape": [len(data)], "datatype": "BYTES", "data": data} for name, data in texts.items()]
    return {"inputs": inputs, "parameters": parameters or {}} | ({"outputs": outputs} if outputs else {})


def tensors(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return {output["name"]: output["data"] for output in response.json()["outputs"]}


async def test_a_recorded_binary_request_gets_a_binary_reply(service: Service) -> None:
    reply = await service.client.post("/v2/models/classify/infer", content=RECORDED, headers=RECORDED_HEADERS)
    size = int(reply.headers[HEADER_LENGTH])
    head = orjson.loads(reply.content[:size])
    assert (head["id"], head["model_name"]) == ("42", "classify")
    assert [(one["name"], one["shape"]) for one in head["outputs"]] == [
        ("label", [2]),
        ("score", [2]),
        ("labels", [2, 2]),
        ("scores", [2, 2]),
    ]
    first = struct.pack("<I", 6) + "好评".encode()
    assert reply.content[size : size + 20] == first * 2


async def test_priority_and_time_out_of_a_request_apply() -> None:
    submit = FakeSubmit()
    async with running(submit=submit, clock=lambda: 100.0) as service:
        await service.client.post("/v2/models/classify/infer", content=RECORDED, headers=RECORDED_HEADERS)
    [options] = submit.options
    assert (options.deadline, options.priority) == (105.0, RANKS["bulk"])


async def test_a_time_out_beyond_the_limit_is_the_limit() -> None:
    submit = FakeSubmit()
    async with running(submit=submit, clock=lambda: 100.0, settings=Server(max_timeout_ms=60_000)) as service:
        await service.post("/v2/models/embed/infer", body({"timeout": 10**12}, text=["好"]))
    assert submit.options[0].deadline == 160.0


@pytest.mark.parametrize(
    ("task", "texts", "expected"),
    [
        ("classify", {"text": ["好吃"], "labels": ["好评", "差评"], "question": ["好吗"]}, {"label": ["好评"]}),
        ("classify", {"text": ["好"], "text_pair": ["吃"], "labels": ["好评", "差评"]}, {"label": ["好评"]}),
        ("similarity", {"text": ["好"], "text_pair": ["吃"]}, {"score": None}),
        ("nli", {"text": ["好"], "text_pair": ["吃"]}, {"label": ["contradiction"]}),
        ("mrc", {"text": ["好吃"], "question": ["好", "吃"], "choices": ["是", "非"]}, {"answer": ["是", "是"]}),
        ("fill-mask", {"text": ["[MASK]吃"]}, {"tokens": None}),
        ("embed", {"input-0": ["好"]}, {"embedding": [HIDDEN**-0.5] * HIDDEN}),
    ],
)
async def test_every_task_is_a_model(service: Service, task: str, texts: Any, expected: dict[str, Any]) -> None:
    found = tensors(await service.post(f"/v2/models/{task}/infer", body(**texts)))
    for name, data in expected.items():
        assert found[name] == (pytest.approx(data) if name == "embedding" else data or found[name])
    described = (await service.client.get(f"/v2/models/{task}")).json()
    assert list(found) == [output["name"] for output in described["outputs"]]


async def test_a_served_model_does_the_task_that_a_parameter_names(service: Service) -> None:
    found = tensors(await service.post("/v2/models/mini/infer", body({"task": "embed"}, text=["好"])))
    assert list(found) == ["embedding"]


async def test_only_the_outputs_that_a_request_names_are_sent(service: Service) -> None:
    outputs = [{"name": "score", "parameters": {"binary_data": False}}]
    found = tensors(
        await service.post("/v2/models/classify/infer", body(None, outputs, text=["好"], labels=["一", "个"]))
    )
    assert list(found) == ["score"]


@pytest.mark.parametrize(
    ("path", "request_body", "status", "message"),
    [
        ("nope", body(text=["好"]), 404, "model: not served"),
        ("similarity", body(text=["好"]), 422, "the input text_pair is required"),
        ("similarity", body(text=["好"], text_pair=["好", "吃"]), 422, "text_pair has 2 elements, and text 1"),
        ("classify", body(text=[""], labels=["一", "个"]), 422, "inputs[0].text: must not be empty"),
        ("classify", body({"lables": "x"}, text=["好"]), 422, "parameters.lables: unknown field"),
        ("classify", body({"priority": -1}, text=["好"]), 422, "parameters.priority"),
        ("classify", body({"task": "embed"}, text=["好"]), 422, "parameters.task"),
        ("mini", body({"task": "x"}, text=["好"]), 422, "parameters.task: must be one of"),
        ("embed", body(None, [{"name": "x"}], text=["好"]), 422, "an output of this model is embedding"),
        ("embed", {"inputs": []}, 422, "inputs"),
        ("fill-mask", body(text=["[MASK]", "[MASK][MASK]"]), 422, "the same number of masks"),
    ],
)
async def test_errors_have_the_shape_of_the_protocol(
    service: Service, path: str, request_body: Any, status: int, message: str
) -> None:
    response = await service.post(f"/v2/models/{path}/infer", request_body)
    assert response.status_code == status
    assert message in response.json()["error"]


async def test_a_refusal_keeps_its_status_and_retry_after() -> None:
    async with running(submit=FakeSubmit(error=QueueFull("full", retry_after_s=3))) as service:
        response = await service.post("/v2/models/embed/infer", body(text=["好"]))
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert response.json()["error"] == "full"


async def test_health_and_metadata(service: Service) -> None:
    get = service.client.get
    assert (await get("/v2/health/live")).json() == {"live": True}
    assert (await get("/v2/health/ready")).json() == {"ready": True}
    assert (await get("/v2/models/mini/ready")).json() == {"name": "mini", "ready": True}
    assert (await get("/v2/models/nope/ready")).status_code == 404
    assert (await get("/v2")).json()["extensions"] == ["binary_tensor_data", "model_configuration", "parameters"]
    optional = {one["name"]: one["optional"] for one in (await get("/v2/models/classify/config")).json()["input"]}
    assert optional == {"text": False, "text_pair": True, "labels": True, "question": True}
    names = [one["name"] for one in (await service.client.post("/v2/repository/index")).json()]
    assert names == ["mini", *TASKS]


async def test_a_server_that_is_not_ready_says_so(service: Service) -> None:
    service.reason.append("loading")
    for path in ("/v2/health/ready", "/v2/models/mini/ready"):
        assert (await service.client.get(path)).status_code == 503


@pytest.mark.parametrize(
    ("name", "instances", "parameters"),
    [
        ("classify", ["好吃", {"text": "好", "text_pair": "吃"}], {"labels": ["好评", "差评"], "top_k": 1}),
        ("mini", ["好吃"], {"labels": ["好评", "差评"]}),
        ("similarity", [["好", "吃"]], {}),
        ("mini", [{"passage": "好", "question": "吃", "choices": ["是", "非"]}], {"task": "mrc"}),
        ("embed", ["好"], {"normalize": False}),
    ],
)
async def test_predict_answers_as_the_native_protocol(
    service: Service, name: str, instances: list[Any], parameters: dict[str, Any]
) -> None:
    response = await service.post(f"/v1/models/{name}:predict", {"instances": instances, "parameters": parameters})
    task = parameters.pop("task", name if name in TASKS else "classify")
    native = await service.post(f"/v1/{task}", {"inputs": instances, **parameters})
    assert response.json() == {"predictions": native.json()["results"]}


@pytest.mark.parametrize(
    ("request_body", "message"),
    [
        ({"instances": []}, "instances"),
        ({"instances": [""], "parameters": {"labels": ["一", "个"]}}, "instances[0].text: must not be empty"),
        ({"instances": ["好"], "parameters": {"lables": []}}, "parameters.lables: unknown field"),
        ({"instances": ["好"], "parameters": {"inputs": []}}, "parameters.inputs"),
        ({"instances": ["好"], "parameters": {"task": 1}}, "parameters.task: must be a string"),
    ],
)
async def test_predict_names_the_field_at_fault(service: Service, request_body: Any, message: str) -> None:
    response = await service.post("/v1/models/classify:predict", request_body)
    assert response.status_code == 422
    assert message in response.json()["error"]


async def test_models_of_v1_are_listed_below_the_prefix(service: Service) -> None:
    assert (await service.client.get("/kserve/v1/models")).json() == {"models": ["mini"]}
    assert (await service.client.get("/kserve/")).json() == {"status": "alive"}


async def test_several_models_with_a_head_have_tasks_of_their_own() -> None:
    pairs = text_model("pairs", "sequence-classification", labels=("不相似", "相似"), tasks=("similarity",))
    async with running(text_model(), pairs) as service:
        described = (await service.client.get("/v2/models/pairs")).json()
    assert [one["name"] for one in described["inputs"]] == ["text", "text_pair"]
