"""Chat completions for choices through OpenAI's client, LangChain and LiteLLM, and LiteLLM's generic guardrail."""

import json
import math
import os
import warnings
from enum import Enum
from typing import Literal

import litellm
import openai
from langchain_openai import ChatOpenAI
from litellm.exceptions import GuardrailRaisedException
from litellm.proxy.guardrails.guardrail_hooks.generic_guardrail_api.generic_guardrail_api import GenericGuardrailAPI
from pydantic import BaseModel, Field
from refusals import refused

URL, KEY, LIMITED = os.environ["URL"], os.environ["KEY"], os.environ["LIMITED"]
TEXT = "这家餐厅的菜很好吃，服务也周到。"
USER = [{"role": "user", "content": TEXT}]
LABELS = ["好评", "差评"]
INSULT = "滚开，你这个笨蛋"
CHOICE = {"extra_body": {"structured_outputs": {"choice": LABELS}}}
warnings.simplefilter("ignore")


class Mood(Enum):
    GOOD = "好评"
    BAD = "差评"


class Review(BaseModel):
    """评论的分析"""

    mood: Mood = Field(description="这条评论是好评还是差评？")
    topic: Literal["餐饮", "体育"]
    urgent: bool
    tags: list[Literal["菜品", "服务", "价格"]]
    other: Literal["甲", "乙"] | None = None


def client(path="/openai/v1", key=KEY, **more):
    return openai.OpenAI(base_url=URL + path, api_key=key, **{"max_retries": 0, **more})


def check_parse_fills_in_a_model():
    for path in ("/openai/v1", "/v1"):
        for model in ("auto", "mini", "e5-small"):
            reply = client(path).chat.completions.parse(model=model, messages=USER, response_format=Review)
            parsed = reply.choices[0].message.parsed
            assert model != "auto" or (parsed.mood, parsed.topic) == (Mood.GOOD, "餐饮")
            assert reply.usage.prompt_tokens > reply.usage.completion_tokens == 5


def check_logprobs():
    reply = client().chat.completions.parse(
        model="auto", messages=USER, response_format=Review, logprobs=True, top_logprobs=2
    )
    [choice] = reply.choices
    tokens = choice.logprobs.content
    assert "".join(token.token for token in tokens) == choice.message.content
    best = tokens[1]
    assert abs(sum(math.exp(one.logprob) for one in best.top_logprobs) - 1) < 1e-3


def check_a_list_of_options():
    reply = client().chat.completions.create(model="auto", messages=USER, **CHOICE)
    assert reply.choices[0].message.content == "好评"


def check_tools():
    reply = client().chat.completions.parse(
        model="auto", messages=USER, tools=[openai.pydantic_function_tool(Review)], tool_choice="required"
    )
    [call] = reply.choices[0].message.tool_calls
    assert call.function.parsed_arguments.mood == Mood.GOOD


def check_streams():
    with client().chat.completions.stream(
        model="auto", messages=USER, response_format=Review, stream_options={"include_usage": True}
    ) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed.mood == Mood.GOOD
    assert final.usage.completion_tokens == 5
    with client().chat.completions.stream(
        model="auto", messages=USER, tools=[openai.pydantic_function_tool(Review)]
    ) as stream:
        [call] = stream.get_final_completion().choices[0].message.tool_calls
    assert call.function.parsed_arguments.topic == "餐饮"


async def check_the_asynchronous_client():
    asked = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
    reply = await asked.chat.completions.parse(model="auto", messages=USER, response_format=Review)
    assert reply.choices[0].message.parsed.mood == Mood.GOOD


def check_errors_say_what_is_wanted():
    create = client().chat.completions.create
    error = refused(openai.BadRequestError, lambda: create(model="auto", messages=USER))
    assert "response_format" in error.message
    assert (error.code, error.type) == ("unsupported_request", "invalid_request_error")
    refused(openai.NotFoundError, lambda: create(model="gpt-4o", messages=USER, **CHOICE))
    refused(
        openai.AuthenticationError,
        lambda: client(key="erl_wrong").chat.completions.create(model="auto", messages=USER, **CHOICE),
    )
    long = [{"role": "user", "content": "好" * 100_001}]
    refused(openai.UnprocessableEntityError, lambda: create(model="auto", messages=long, **CHOICE))


def check_time_outs():
    create = client(timeout=0.0001).chat.completions.create
    refused(openai.APITimeoutError, lambda: create(model="auto", messages=USER, **CHOICE))
    hurried = client(default_headers={"X-Request-Timeout-Ms": "1"}).chat.completions.create
    long = [{"role": "user", "content": "这家餐厅的菜很好吃" * 5000}]
    error = refused(openai.APIStatusError, lambda: hurried(model="auto", messages=long, **CHOICE))
    assert error.status_code in (429, 504)


def check_429_is_retried_after_the_wait_that_the_server_names():
    patient = client(key=LIMITED, max_retries=5)
    for _ in range(3):
        assert patient.chat.completions.create(model="auto", messages=USER, **CHOICE).choices


def check_langchain_with_structured_output():
    model = ChatOpenAI(model="auto", base_url=f"{URL}/openai/v1", api_key=KEY, max_retries=0)
    for method in ("json_schema", "function_calling"):
        assert model.with_structured_output(Review, method=method).invoke(TEXT).mood == Mood.GOOD
    batch = model.with_structured_output(Review).batch([TEXT] * 8)
    assert [one.topic for one in batch] == ["餐饮"] * 8
    refused(openai.BadRequestError, lambda: model.with_structured_output(Review, method="json_mode").invoke(TEXT))


def check_litellm():
    given = {"model": "openai/auto", "api_base": f"{URL}/openai/v1", "messages": USER}
    reply = litellm.completion(**given, api_key=KEY, response_format=Review)
    assert Review.model_validate_json(reply.choices[0].message.content).mood == Mood.GOOD
    chunks = litellm.completion(**given, api_key=KEY, response_format=Review, stream=True)
    content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert json.loads(content)["topic"] == "餐饮"
    refused(litellm.BadRequestError, lambda: litellm.completion(**given, api_key=KEY))
    refused(litellm.AuthenticationError, lambda: litellm.completion(**given, api_key="erl_wrong", **CHOICE))
    for _ in range(3):
        litellm.completion(**given, api_key=LIMITED, num_retries=5, response_format=Review)


def guardrail(path="/guardrails", key=KEY, **params):
    given = {"label_set": "moderation", **params}
    return GenericGuardrailAPI(
        api_base=URL + path, api_key=key, guardrail_name="erlangshen", additional_provider_specific_params=given
    )


async def outcome(given, input_type="request"):
    """What the guardrail returns or raises."""
    try:
        return await given.apply_guardrail(inputs={"texts": [INSULT]}, request_data={}, input_type=input_type)
    except Exception as error:  # noqa: BLE001 - the outcome
        return error


async def check_litellm_guardrail():
    for path in ("/guardrails", ""):
        assert (await outcome(guardrail(path, threshold=1.0)))["texts"] == [INSULT]
        for input_type in ("request", "response"):
            blocked = await outcome(guardrail(path, threshold=0.001), input_type)
            assert isinstance(blocked, GuardrailRaisedException)
            assert "flagged as" in str(blocked)


async def check_a_guardrail_that_cannot_answer_closes_the_gateway():
    for broken in (guardrail(key="erl_wrong"), guardrail(label_set="none")):
        found = await outcome(broken)
        assert isinstance(found, Exception)
        assert not isinstance(found, GuardrailRaisedException)
