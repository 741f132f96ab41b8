"""The official SDK of the Model Context Protocol against a server, with and without a handshake."""

import os

import httpx2
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

URL, KEY, LIMITED = os.environ["URL"], os.environ["KEY"], os.environ["LIMITED"]
PATIENCE_S = 300
MODES = ("legacy", "auto", "2026-07-28")
CLASSIFY = {"texts": ["这家餐厅的菜很好吃"], "labels": ["好评", "差评"]}


def connect(mode, key=KEY, **headers):
    http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}", **headers}, timeout=PATIENCE_S)
    return Client(streamable_http_client(f"{URL}/mcp", http_client=http), mode=mode)


def errors_in(error):
    """The errors of a group, and of the groups in it."""
    if isinstance(error, BaseExceptionGroup):
        return [found for one in error.exceptions for found in errors_in(one)]
    return [error]


async def refused(call):
    """The error of the protocol that a call ends with; the SDK wraps it in groups."""
    found = []
    try:
        await call()
    except Exception as error:  # noqa: BLE001 - looked at below
        found = errors_in(error)
    return next(one for one in found if isinstance(one, MCPError))


async def check_every_tool():
    for mode in MODES:
        async with connect(mode) as client:
            tools = (await client.list_tools()).tools
            assert [tool.name for tool in tools] == ["classify", "similarity", "answer", "embed"]
            found = (await client.call_tool("classify", CLASSIFY)).structured_content
            assert found["results"][0]["label"] == "好评"
            arguments = {"source": "怎么更换手机号", "candidates": ["如何修改绑定的手机", "电池多久充满"]}
            first, second = (await client.call_tool("similarity", arguments)).structured_content["scores"]
            assert first > second
            arguments = {"passage": "小王每天早上六点起床。", "question": "小王几点起床？"}
            found = await client.call_tool("answer", {**arguments, "choices": ["六点", "九点"]})
            assert found.structured_content["answer"] == "六点"
            assert not (await client.call_tool("answer", arguments)).is_error
            found = await client.call_tool("embed", {"texts": ["今天天气怎么样？"] * 2})
            assert [len(vector) for vector in found.structured_content["embeddings"]] == [384, 384]


async def check_a_stored_label_set():
    async with connect("auto") as client:
        found = await client.call_tool("classify", {"texts": CLASSIFY["texts"], "label_set": "moderation"})
        assert {one["label"] for one in found.structured_content["results"][0]["scores"]} == {"辱骂", "广告"}


async def check_what_is_wrong_with_arguments_is_a_result():
    for mode in MODES:
        async with connect(mode) as client:
            found = await client.call_tool("classify", {"texts": [""], "labels": ["一", "二"]})
            assert found.is_error
            assert "texts[0].text: must not be empty" in found.content[0].text
            assert (await client.call_tool("classify", {"texts": ["好"], "lables": ["一"]})).is_error


async def check_errors_of_the_protocol():
    for mode in MODES:
        async with connect(mode) as client:
            assert "no such tool" in str(await refused(lambda: client.call_tool("none", {})))
            assert "Method not found" in str(await refused(client.list_resources))


async def check_a_large_batch_and_one_that_is_too_large():
    texts = [f"第{index}条" for index in range(256)]
    async with connect("auto", **{"X-Request-Timeout-Ms": str(PATIENCE_S * 1000)}) as client:
        found = await client.call_tool("embed", {"texts": texts})
        assert len(found.structured_content["embeddings"]) == 256
        assert "at most 256" in (await client.call_tool("embed", {"texts": [*texts, "好"]})).content[0].text


async def check_keys():
    async def call():
        async with connect("legacy", key="erl_wrong") as client:
            await client.list_tools()

    assert "API key is unknown" in str(await refused(call))


async def check_origins():
    async def call(origin):
        async with connect("legacy", Origin=origin) as client:
            await client.list_tools()

    await call(URL)
    assert "may not call" in str(await refused(lambda: call("http://other.example")))


async def check_a_limit_is_an_error_of_the_client_which_does_not_retry():
    async def calls():
        for _ in range(4):
            async with connect("2026-07-28", key=LIMITED) as client:
                await client.call_tool("classify", CLASSIFY)

    assert "requests a second" in str(await refused(calls))
