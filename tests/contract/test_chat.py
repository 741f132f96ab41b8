"""Chat completions for choices, with requests of openai 3.54.0, langchain-openai 1.7.4 and litellm 1.110.2."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.errors import DeadlineExceeded, QueueFull
from tests.contract.fakes import FakeSubmit, Service, running

PATH = "/v1/chat/completions"
SCHEMA = {
    "properties": {
        "mood": {"description": "好评还是差评？", "enum": ["好评", "差评"], "title": "Mood", "type": "string"},
        "urgent": {"title": "Urgent", "type": "boolean"},
    },
    "required": ["mood", "urgent"],
    "title": "Review",
    "type": "object",
    "additionalProperties": False,
}
USER = {"role": "user", "content": "菜很好吃"}
PARSE = {
    "model": "auto",
    "stream": False,
    "messages": [{"role": "system", "content": "s"}, USER],
    "logprobs": True,
    "top_logprobs": 2,
    "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "name": "Review", "strict": True}},
}
"""Of `client.chat.completions.parse`; `with_structured_output` and LiteLLM send the same without `logprobs`."""
FUNCTION_CALLING = {
    "model": "auto",
    "stream": False,
    "messages": [{"content": "菜很好吃", "role": "user"}],
    "parallel_tool_calls": False,
    "tool_choice": {"type": "function", "function": {"name": "Review"}},
    "tools": [
        {"type": "function", "function": {"name": "Review", "description": "评论的分析", "parameters": SCHEMA}},
        {"type": "function", "function": {"name": "Other", "parameters": {"type": "object", "properties": {}}}},
    ],
}
"""Of LangChain's `with_structured_output(method="function_calling")`."""
CHOICE = {"model": "auto", "messages": [USER], "structured_outputs": {"choice": ["好评", "差评"]}}


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with running() as service:
        yield service


async def complete(service: Service, body: dict[str, Any]) -> Any:
    response = await service.post(PATH, body)
    assert response.status_code == 200, response.text
    return response.json()


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


async def test_a_schema_is_filled_in_by_the_classifier(service: Service) -> None:
    reply = await complete(service, PARSE)
    [choice] = reply["choices"]
    assert (reply["object"], reply["model"], choice["finish_reason"]) == ("chat.completion", "mini", "stop")
    assert json.loads(choice["message"]["content"]) == {"mood": "好评", "urgent": True}


async def test_the_last_message_of_the_user_is_the_text(service: Service) -> None:
    parts = [{"type": "text", "text": "菜很"}, {"type": "text", "text": "好吃"}]
    await complete(service, CHOICE | {"messages": [USER, {"role": "assistant"}, {"role": "user", "content": parts}]})
    await service.post("/v1/classify", {"inputs": "菜很\n好吃", "labels": ["好评", "差评"]})
    chat, native = service.submit.calls
    assert chat[0].ids.tolist() == native[0].ids.tolist()


async def test_the_description_of_a_property_is_the_question(service: Service) -> None:
    await complete(service, PARSE)
    await service.post("/v1/classify", {"inputs": "菜很好吃", "labels": ["好评", "差评"], "question": "好评还是差评？"})
    chat, _, native = service.submit.calls
    assert chat[0].ids.tolist() == native[0].ids.tolist()


async def test_logprobs_are_those_of_the_scores(service: Service) -> None:
    reply = await complete(service, PARSE)
    native = await service.post(
        "/v1/classify", {"inputs": "菜很好吃", "labels": ["好评", "差评"], "question": "好评还是差评？"}
    )
    [best, other] = native.json()["results"][0]["scores"]
    [choice] = reply["choices"]
    tokens = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == choice["message"]["content"]
    assert [(one["token"], math.exp(one["logprob"])) for one in tokens[1]["top_logprobs"]] == [
        ("好评", pytest.approx(best["score"])),
        ("差评", pytest.approx(other["score"])),
    ]
    assert tokens[1]["bytes"] == list("好评".encode())


async def test_usage_counts_the_tokens_of_every_choice(service: Service) -> None:
    usage = (await complete(service, PARSE))["usage"]
    computed = sum(row.num_tokens for call in service.submit.calls for row in call)
    assert usage == {"prompt_tokens": computed, "completion_tokens": 2, "total_tokens": computed + 2}


async def test_the_arguments_of_a_tool_are_filled_in(service: Service) -> None:
    [choice] = (await complete(service, FUNCTION_CALLING))["choices"]
    [call] = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], choice["message"]["content"], call["type"]) == ("tool_calls", None, "function")
    assert call["function"]["name"] == "Review"
    assert json.loads(call["function"]["arguments"]) == {"mood": "好评", "urgent": True}


@pytest.mark.parametrize(
    "names", [{"structured_outputs": {"choice": ["好评", "差评"]}}, {"guided_choice": ["好评", "差评"]}]
)
async def test_an_option_is_answered_without_quotes(service: Service, names: dict[str, Any]) -> None:
    [choice] = (await complete(service, {"messages": [USER], **names}))["choices"]
    assert choice["message"]["content"] == "好评"


async def test_a_schema_in_a_string_is_read(service: Service) -> None:
    body = {"messages": [USER], "structured_outputs": {"json": json.dumps(SCHEMA)}}
    [choice] = (await complete(service, body))["choices"]
    assert json.loads(choice["message"]["content"])["mood"] == "好评"


async def test_a_stream_has_the_same_content_and_usage(service: Service) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    response = await service.post(PATH, PARSE | options)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events(response.text)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    assert json.loads("".join(delta.get("content", "") for delta in deltas)) == {"mood": "好评", "urgent": True}
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 2)
    assert {chunk["id"] for chunk in chunks} == {last["id"]}


async def test_a_stream_of_a_tool_has_its_arguments_in_parts(service: Service) -> None:
    response = await service.post(PATH, FUNCTION_CALLING | {"stream": True})
    calls = [call for chunk in events(response.text) for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert calls[0]["function"]["name"] == "Review"
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"mood": "好评", "urgent": True}


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, "name the options in response_format"),
        ({"response_format": {"type": "text"}}, "name the options in response_format"),
        ({"response_format": {"type": "json_object"}}, "must have the type json_schema"),
        ({"response_format": {"type": "json_schema"}}, "the schema in json_schema.schema"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"properties": {"a": {"type": "string"}}}},
                }
            },
            "response_format.json_schema.schema.properties.a: wanted an enum",
        ),
        ({"tools": FUNCTION_CALLING["tools"], "tool_choice": "required"}, "tool_choice: must name one of the tools"),
        ({"tools": FUNCTION_CALLING["tools"], "tool_choice": "none"}, "name the options in response_format"),
        ({"tools": [{"type": "function", "function": {}}]}, "must each have a function with a name"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice: must be a list"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json: is not JSON"),
        (CHOICE | {"n": 2}, "n: must be 1"),
        (CHOICE | {"messages": [{"role": "system", "content": "s"}]}, "must have a message of the user"),
        (
            CHOICE | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content: must be text",
        ),
    ],
)
async def test_anything_but_a_choice_is_a_400_that_says_what_is_wanted(
    service: Service, change: dict[str, Any], wanted: str
) -> None:
    response = await service.post(PATH, {"model": "auto", "messages": [USER], **change})
    assert response.status_code == 400
    assert wanted in response.json()["error"]["message"]
    assert service.submit.calls == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": [{"role": "user", "content": " "}]}, "messages"),
        ({"structured_outputs": {"choice": ["好", "好"]}}, "structured_outputs.choice"),
    ],
)
async def test_what_the_classifier_refuses_names_the_field_of_the_chat(
    service: Service, change: dict[str, Any], message: str
) -> None:
    response = await service.post(PATH, CHOICE | change)
    assert response.status_code == 422
    assert response.json()["error"]["message"].startswith(message)


async def test_an_unknown_model_is_a_404(service: Service) -> None:
    assert (await service.post(PATH, CHOICE | {"model": "gpt-4o"})).status_code == 404


async def test_a_refusal_keeps_its_status_and_retry_after() -> None:
    async with running(submit=FakeSubmit(error=QueueFull("full", retry_after_s=3))) as service:
        response = await service.post(PATH, CHOICE)
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")


async def test_a_deadline_is_a_504() -> None:
    async with running(submit=FakeSubmit(error=DeadlineExceeded("too late"))) as service:
        assert (await service.post(PATH, CHOICE)).status_code == 504
