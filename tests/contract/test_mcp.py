"""The Model Context Protocol, with messages as the official SDK (mcp 2.3.0) sends them in both of its modes."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from service.api.accounts import Key, hash_of
from service.api.protocols.mcp import HANDSHAKE_VERSIONS, STATELESS_VERSION
from service.errors import QueueFull
from service.settings import Security, Server
from tests.contract.fakes import HIDDEN, FakeSubmit, Service, running, text_model

ACCEPT = {"accept": "application/json, text/event-stream"}
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "mcp", "version": "0.1.0"},
    },
}
META = {
    "io.modelcontextprotocol/protocolVersion": STATELESS_VERSION,
    "io.modelcontextprotocol/clientInfo": {"name": "mcp", "version": "0.1.0"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
CLASSIFY = {"name": "classify", "arguments": {"texts": ["好吃"], "labels": ["好评", "差评"]}}


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with running() as service:
        yield service


async def send(service: Service, message: Any, **headers: str) -> httpx.Response:
    return await service.client.post("/mcp", json=message, headers=ACCEPT | headers)


async def call(service: Service, method: str, params: Any = None) -> Any:
    """A request after a handshake."""
    message = {"jsonrpc": "2.0", "id": 7, "method": method, "params": params or {}}
    reply = (await send(service, message, **{"mcp-protocol-version": "2025-11-25"})).json()
    assert (reply["jsonrpc"], reply["id"]) == ("2.0", 7)
    return reply


async def stateless(service: Service, method: str, params: Any = None, **headers: str) -> httpx.Response:
    """A request without a handshake."""
    message = {"jsonrpc": "2.0", "id": 7, "method": method, "params": {**(params or {}), "_meta": META}}
    return await send(service, message, **{"mcp-protocol-version": STATELESS_VERSION, "mcp-method": method} | headers)


@pytest.mark.parametrize(
    ("asked", "given"), [*((version, version) for version in HANDSHAKE_VERSIONS), ("2099-01-01", "2025-11-25")]
)
async def test_a_handshake_agrees_on_a_version(service: Service, asked: str, given: str) -> None:
    message = INITIALIZE | {"params": INITIALIZE["params"] | {"protocolVersion": asked}}  # type: ignore[operator]
    result = (await send(service, message)).json()["result"]
    assert (result["protocolVersion"], result["capabilities"]) == (given, {"tools": {"listChanged": False}})


async def test_there_is_no_session(service: Service) -> None:
    assert "mcp-session-id" not in (await send(service, INITIALIZE)).headers


async def test_a_notification_is_accepted(service: Service) -> None:
    response = await send(service, {"jsonrpc": "2.0", "method": "notifications/initialized"})
    assert (response.status_code, response.content) == (202, b"")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_there_are_no_streams_of_the_server(service: Service, method: str) -> None:
    response = await service.client.request(method, "/mcp", headers=ACCEPT)
    assert response.status_code == 405


async def test_a_ping_is_answered(service: Service) -> None:
    assert (await call(service, "ping"))["result"] == {}


async def test_the_tools_are_those_that_the_models_can_do() -> None:
    async with running() as service:
        tools = (await call(service, "tools/list"))["result"]["tools"]
        assert [tool["name"] for tool in tools] == ["classify", "similarity", "answer", "embed"]
    async with running(text_model("plain", "encoder")) as service:
        tools = (await call(service, "tools/list"))["result"]["tools"]
        assert [tool["name"] for tool in tools] == ["embed"]


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        (
            "classify",
            CLASSIFY["arguments"],
            {"results": [{"label": "好评", "score": 0.7310585975646973, "scores": None}]},
        ),
        ("similarity", {"source": "好", "candidates": ["吃", "好"]}, {"scores": [0.2689414322376251] * 2}),
        ("answer", {"passage": "好", "question": "吃", "choices": ["是", "非"]}, {"answer": "是"}),
        ("embed", {"texts": ["好"]}, {"embeddings": [pytest.approx([HIDDEN**-0.5] * HIDDEN)]}),
    ],
)
async def test_a_tool_answers_by_its_schema(service: Service, name: str, arguments: Any, result: Any) -> None:
    found = (await call(service, "tools/call", {"name": name, "arguments": arguments}))["result"]
    structured = found["structuredContent"]
    assert (found["isError"], structured["model"], found["content"][0]["type"]) == (False, "mini", "text")
    for field, value in result.items():
        if name == "classify":
            structured[field][0]["scores"] = None
        assert structured[field] == value
    tools = {tool["name"]: tool for tool in (await call(service, "tools/list"))["result"]["tools"]}
    assert set(tools[name]["outputSchema"]["required"]) == set(structured)
    assert set(arguments) <= set(tools[name]["inputSchema"]["properties"])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("classify", {}, "texts: is required"),
        ("classify", {"texts": [""], "labels": ["一", "个"]}, "texts[0].text: must not be empty"),
        ("classify", {"texts": ["好"], "lables": ["一"]}, "lables: unknown argument; the known ones are texts"),
        ("classify", {"texts": ["好"], "timeout_ms": 1}, "timeout_ms: unknown argument"),
        ("answer", {"passage": "好", "question": "吃"}, "question-answering model"),
    ],
)
async def test_wrong_arguments_are_a_result_that_a_language_model_can_read(
    service: Service, name: str, arguments: Any, message: str
) -> None:
    result = (await call(service, "tools/call", {"name": name, "arguments": arguments}))["result"]
    assert result["isError"] is True
    assert message in result["content"][0]["text"]


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("tools/call", {"name": "nope"}, -32602),
        ("tools/call", {"name": "classify", "arguments": []}, -32602),
        ("resources/list", {}, -32601),
        ("server/discover", {}, -32601),
    ],
)
async def test_other_calls_are_errors_of_the_protocol(service: Service, method: str, params: Any, code: int) -> None:
    assert (await call(service, method, params))["error"]["code"] == code


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"[", -32700), (b"[]", -32600), (b"{}", -32600), (b'{"jsonrpc":"1.0","id":1,"method":"ping"}', -32600)],
)
async def test_what_is_no_message_is_a_400_or_422_with_an_error(service: Service, content: bytes, code: int) -> None:
    response = await service.client.post("/mcp", content=content, headers=ACCEPT)
    assert response.status_code in (400, 422)
    assert response.json()["error"]["code"] == code
    assert response.json()["id"] is None


async def test_without_a_handshake_the_server_is_discovered(service: Service) -> None:
    result = (await stateless(service, "server/discover")).json()["result"]
    assert STATELESS_VERSION in result["supportedVersions"]
    assert (result["resultType"], result["cacheScope"]) == ("complete", "private")
    assert result["_meta"]["io.modelcontextprotocol/serverInfo"]["name"] == "erlangshen-service"


async def test_without_a_handshake_a_tool_is_called(service: Service) -> None:
    response = await stateless(service, "tools/call", CLASSIFY, **{"mcp-name": "classify"})
    result = response.json()["result"]
    assert (result["resultType"], result["structuredContent"]["results"][0]["label"]) == ("complete", "好评")


@pytest.mark.parametrize("name", ["classify", f"=?base64?{base64.b64encode(b'classify').decode()}?="])
async def test_the_name_of_a_tool_may_be_encoded_in_its_header(service: Service, name: str) -> None:
    assert (await stateless(service, "tools/call", CLASSIFY, **{"mcp-name": name})).status_code == 200


@pytest.mark.parametrize(
    ("headers", "code", "status"),
    [
        ({"mcp-name": "embed"}, -32020, 400),
        ({"mcp-name": "=?base64?%?="}, -32020, 400),
        ({}, -32020, 400),
        ({"mcp-name": "classify", "mcp-method": "tools/list"}, -32020, 400),
        ({"mcp-name": "classify", "mcp-protocol-version": "2030-01-01"}, -32022, 400),
    ],
)
async def test_headers_must_agree_with_the_message(
    service: Service, headers: dict[str, str], code: int, status: int
) -> None:
    response = await stateless(service, "tools/call", CLASSIFY, **headers)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert service.submit.calls == []


async def test_without_a_handshake_each_request_names_its_version(service: Service) -> None:
    headers = {"mcp-protocol-version": STATELESS_VERSION, "mcp-method": "tools/list"}
    response = await send(service, {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, **headers)
    assert (response.status_code, response.json()["error"]["code"]) == (400, -32602)


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://test", 200), ("https://app.example", 200), ("http://evil.example", 403), ("null", 403)],
)
async def test_a_page_of_another_origin_may_not_call(origin: str, status: int) -> None:
    async with running(security=Security(cors_origins=("https://app.example",))) as service:
        response = await send(service, INITIALIZE, origin=origin)
    assert response.status_code == status


async def test_a_key_is_required() -> None:
    keys = {"reader": Key(hash=hash_of("secret"))}
    async with running(keys=keys) as service:
        refused = await send(service, INITIALIZE)
        allowed = await send(service, INITIALIZE, authorization="Bearer secret")
    assert (refused.status_code, refused.json()["error"]["data"]["code"]) == (401, "unauthorized")
    assert allowed.status_code == 200


async def test_a_refusal_of_the_queue_keeps_its_status_and_the_id() -> None:
    async with running(submit=FakeSubmit(error=QueueFull("full", retry_after_s=3))) as service:
        message = {"jsonrpc": "2.0", "id": "a", "method": "tools/call", "params": CLASSIFY}
        response = await send(service, message)
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert response.json() == {
        "jsonrpc": "2.0",
        "id": "a",
        "error": {
            "code": -32000,
            "message": "full",
            "data": {"code": "queue_full", "request_id": response.headers["x-request-id"]},
        },
    }


async def test_a_server_that_starts_lists_its_tools_and_calls_none(service: Service) -> None:
    service.reason.append("loading")
    assert "result" in await call(service, "tools/list")
    assert (
        await send(service, {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": CLASSIFY})
    ).status_code == 503


async def test_the_protocol_can_be_left_out() -> None:
    async with running(settings=Server(protocols=("kserve",))) as service:
        assert (await send(service, INITIALIZE)).status_code == 404
