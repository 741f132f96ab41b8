"""OpenAI's chat completions, for choices only: what the reply may be is a JSON schema of enums, or a list of options.

The classifier chooses: the text is the last message of the user, the options come from `response_format`, from the
parameters of a tool, or from vLLM's `structured_outputs.choice`. Anything else is refused: no model here writes text.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import Field
from starlette.responses import Response

from service.api.calls import Call
from service.api.exchange import Exchange, Rename, json_response, whole
from service.api.field_types import MAX_TOP_K, Lenient
from service.api.json_body import validate
from service.api.protocols.choice_schemas import ChoiceSchema, Decision, Piece, read_choices, read_schema
from service.api.schemas import ClassifyRequest
from service.errors import InvalidRequest, UnsupportedRequest
from service.pipeline import Answer

ANY_MODEL = "auto"
"""The model of a request that leaves the choice to the server: clients of this protocol have to name one."""
MAX_TOP = 20
_WANTED = (
    "this server classifies and writes no text: name the options in response_format (a JSON schema of enums), in the "
    "parameters of one tool, or in structured_outputs.choice"
)
_SCHEMA = "response_format.json_schema.schema"
_LEAST = 1e-30
"""A probability of 0 has no logarithm."""


class ChatMessage(Lenient):
    role: str
    content: str | list[dict[str, Any]] | None = None


class ChatRequest(Lenient):
    """A conversation whose answer is a choice. What means nothing to a classifier, as `temperature`, is ignored."""

    messages: list[ChatMessage] = Field(min_length=1)
    model: str | None = Field(None, min_length=1, max_length=4096)
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_choice: list[Any] | None = Field(None, description="The older name of `structured_outputs.choice`.")
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP)
    n: int | None = None


@dataclass(frozen=True, slots=True)
class Choices:
    """What a request asks for; `tool` is the name of the function whose arguments the choice makes, `is_text` says that
    the reply is the option itself, without quotes."""

    schema: ChoiceSchema
    tool: str | None = None
    is_text: bool = False


def choices_of(body: ChatRequest) -> Choices:
    """Raises UnsupportedRequest if the request names no options."""
    if body.n not in (None, 1):
        raise UnsupportedRequest.of("n", "must be 1: a choice has one answer")
    tools = [] if body.tool_choice == "none" else body.tools or []
    if tools and body.tool_choice not in (None, "auto"):
        return _of_tool(tools, body.tool_choice)
    outputs = body.structured_outputs or {}
    if (options := outputs.get("choice", body.guided_choice)) is not None:
        path = "guided_choice" if "choice" not in outputs else "structured_outputs.choice"
        return Choices(read_choices(options if isinstance(options, list) else [], path), is_text=True)
    if "json" in outputs:
        return Choices(read_schema(_loaded(outputs["json"]), "structured_outputs.json"))
    if body.response_format is not None and body.response_format.get("type") != "text":
        return Choices(read_schema(_format_schema(body.response_format), _SCHEMA))
    if tools:
        return _of_tool(tools, "auto")
    raise UnsupportedRequest(_WANTED)


def _format_schema(response_format: dict[str, Any]) -> Any:
    described = response_format.get("json_schema")
    if response_format.get("type") != "json_schema" or not isinstance(described, dict):
        raise UnsupportedRequest.of(
            "response_format", f"must have the type json_schema, and the schema in json_schema.schema; {_WANTED}"
        )
    return described.get("schema")


def _loaded(schema: Any) -> Any:
    """vLLM takes a schema as JSON in a string, too."""
    try:
        return orjson.loads(schema) if isinstance(schema, str) else schema
    except orjson.JSONDecodeError:
        raise UnsupportedRequest.of("structured_outputs.json", "is not JSON") from None


def _of_tool(tools: list[dict[str, Any]], choice: str | dict[str, Any]) -> Choices:
    functions = [tool["function"] if isinstance(tool.get("function"), dict) else {} for tool in tools]
    if isinstance(choice, dict):
        wanted = choice.get("function")
        name = wanted.get("name") if isinstance(wanted, dict) else None
        functions = [function for function in functions if function.get("name") == name]
    if len(functions) != 1:
        raise UnsupportedRequest.of("tool_choice", "must name one of the tools: their choice is no part of the answer")
    [function] = functions
    name = function.get("name")
    if not isinstance(name, str):
        raise UnsupportedRequest.of("tools", "must each have a function with a name")
    return Choices(read_schema(function.get("parameters"), "tools.function.parameters"), tool=name)


def last_text(messages: Sequence[ChatMessage]) -> str:
    """The last message of the user. Raises UnsupportedRequest if there is none, or not all of it is text."""
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].role == "user":
            return _content(messages[index].content, f"messages[{index}].content")
    raise UnsupportedRequest.of("messages", "must have a message of the user: its text is classified")


def _content(content: str | list[dict[str, Any]] | None, path: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for part in content or []:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise UnsupportedRequest.of(path, "must be text, or parts of the type text")
        texts.append(part["text"])
    return "\n".join(texts)


async def complete(exchange: Exchange, body: ChatRequest) -> Response:
    """`POST /v1/chat/completions`."""
    choices, text = choices_of(body), last_text(body.messages)
    model = None if body.model == ANY_MODEL else body.model
    answers = await _decide(exchange, choices.schema.decisions, text, model)
    tokens = sum(answer.tokens for answer in answers)
    pieces = choices.schema.fill([{each.label: each.score for each in answer.results[0].scores} for answer in answers])
    if choices.is_text:
        pieces = [piece for piece in pieces if piece.others]
    reply = Reply(
        id=f"chatcmpl-{exchange.context.request_id}",
        created=int(time.time()),
        model=answers[0].model,
        pieces=pieces,
        tool=choices.tool,
        top=None if not body.logprobs else body.top_logprobs or 0,
        usage={
            "prompt_tokens": tokens,
            "completion_tokens": len(choices.schema.decisions),
            "total_tokens": tokens + len(choices.schema.decisions),
        },
    )
    if not body.stream:
        return json_response(reply.whole())
    with_usage = bool((body.stream_options or {}).get("include_usage"))
    events = [b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in reply.chunks(with_usage)]
    headers = {"Cache-Control": "no-cache"}
    return Response(b"".join([*events, b"data: [DONE]\n\n"]), 200, headers, "text/event-stream")


async def _decide(exchange: Exchange, decisions: Sequence[Decision], text: str, model: str | None) -> list[Answer[Any]]:
    """The answers of all decisions, whose rows can be computed in one batch."""
    requests = [_request(decision, text, exchange).model_copy(update={"model": model}) for decision in decisions]
    try:
        async with asyncio.TaskGroup() as group:
            running = [
                group.create_task(
                    exchange.answer("classify", request.query(), whole, model=model, rename=_rename(decision.path))
                )
                for decision, request in zip(decisions, requests, strict=True)
            ]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [one.result() for one in running]


def _request(decision: Decision, text: str, exchange: Exchange) -> ClassifyRequest:
    labels = list(decision.options)
    value = {"inputs": [text], "labels": labels, "multi_label": decision.is_list, "top_k": min(len(labels), MAX_TOP_K)}
    if decision.question:
        value["question"] = decision.question
    try:
        return validate(value, ClassifyRequest, exchange.limits)
    except InvalidRequest as error:
        raise _renamed(error, decision.path) from None


def _renamed(error: InvalidRequest, path: str) -> InvalidRequest:
    if not error.errors:
        return error
    first = error.errors[0]
    return InvalidRequest.of(_rename(path)(first.field), first.message)


def _rename(path: str) -> Rename:
    def rename(field: str) -> str:
        return path if field.startswith(("labels", "question")) else "messages" if field.startswith("inputs") else field

    return rename


@dataclass(frozen=True, slots=True)
class Reply:
    """A choice in the shapes of a chat completion; `top` is the number of options to show, None without logprobs."""

    id: str
    created: int
    model: str
    pieces: Sequence[Piece]
    tool: str | None
    top: int | None
    usage: dict[str, int]

    def whole(self) -> dict[str, Any]:
        content = "".join(piece.text for piece in self.pieces)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self.tool is not None:
            message |= {"content": None, "tool_calls": [self._call(content)]}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": self._logprobs(self.pieces),
            "finish_reason": self._finish_reason(),
        }
        return self._head("chat.completion") | {"choices": [choice], "usage": self.usage}

    def chunks(self, with_usage: bool) -> Iterator[dict[str, Any]]:
        """The same as a stream: the answer is complete when it starts."""
        start: dict[str, Any] = {"role": "assistant", "content": "" if self.tool is None else None}
        if self.tool is not None:
            start["tool_calls"] = [{"index": 0, **self._call("")}]
        yield self._chunk(start, with_usage)
        for piece in self.pieces:
            delta: dict[str, Any] = {"content": piece.text}
            if self.tool is not None:
                delta = {"tool_calls": [{"index": 0, "function": {"arguments": piece.text}}]}
            yield self._chunk(delta, with_usage, logprobs=self._logprobs([piece]))
        yield self._chunk({}, with_usage, finish_reason=self._finish_reason())
        if with_usage:
            yield self._head("chat.completion.chunk") | {"choices": [], "usage": self.usage}

    def _chunk(
        self, delta: dict[str, Any], with_usage: bool, *, logprobs: Any = None, finish_reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._head("chat.completion.chunk") | {"choices": [choice]} | ({"usage": None} if with_usage else {})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _call(self, arguments: str) -> dict[str, Any]:
        name = {"name": self.tool, "arguments": arguments}
        return {"id": f"call_{self.id.removeprefix('chatcmpl-')}", "type": "function", "function": name}

    def _finish_reason(self) -> str:
        return "stop" if self.tool is None else "tool_calls"

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        if self.top is None or self.tool is not None:
            return None
        return {"content": [self._token(piece, self.top) for piece in pieces], "refusal": None}

    def _token(self, piece: Piece, top: int) -> dict[str, Any]:
        others = piece.others or ((piece.text, 1.0),)
        shown = [_logprob(text, score) for text, score in others[:top]]
        return _logprob(piece.text, piece.score) | {"top_logprobs": shown}


def _logprob(text: str, score: float) -> dict[str, Any]:
    return {"token": text, "logprob": math.log(max(score, _LEAST)), "bytes": list(text.encode())}


CALLS = (
    Call(
        "POST",
        "/v1/chat/completions",
        complete,
        ChatRequest,
        task="classify",
        roots=("/v1/chat/completions",),
        summary="Choose among the options of a JSON schema",
    ),
)
