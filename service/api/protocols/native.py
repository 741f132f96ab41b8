"""The native protocol: one POST route per task, all answered the same way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from service.api import schemas
from service.api.json_body import Body, is_quick, parse, text_memory
from service.api.label_set_routes import find
from service.api.memory import ROW_BYTES, TOKEN_BYTES
from service.api.openapi import EXAMPLES, REPLY_HEADERS, TASK_ERRORS, described_elsewhere, request_body
from service.api.problems import invalid
from service.api.request import (
    Headers,
    PlainRoute,
    RequestContext,
    context_of,
    not_ready,
    read_body,
    unless_gone,
)
from service.api.state import ServiceState
from service.domain import RANKS, RequestOptions, Timing
from service.errors import InvalidRequest
from service.pipeline import Answer, Encoded
from service.settings import Server
from service.slices import between_slices
from service.tasks.registry import TASKS, names_of

SLICE_ITEMS = 5000
"""Of a large reply, written at once: a few milliseconds."""
_PRIORITIES = {rank: name for name, rank in RANKS.items()}


@dataclass(frozen=True, slots=True)
class TaskRoute:
    """One task as a route; the path is /v1/ and the task's name."""

    task: str
    request: type[schemas.TaskRequest]
    reply: type[BaseModel]
    summary: str

    @property
    def path(self) -> str:
        return f"/v1/{self.task}"


ROUTES = (
    TaskRoute("classify", schemas.ClassifyRequest, schemas.ClassifyReply, "Which label fits a text"),
    TaskRoute("similarity", schemas.SimilarityRequest, schemas.SimilarityReply, "Do two texts mean the same"),
    TaskRoute("mrc", schemas.MrcRequest, schemas.MrcReply, "What answers a question on a passage"),
    TaskRoute("nli", schemas.NliRequest, schemas.NliReply, "Does a hypothesis follow from a premise"),
    TaskRoute("fill-mask", schemas.FillMaskRequest, schemas.FillMaskReply, "What stands in the place of a mask"),
    TaskRoute("embed", schemas.EmbedRequest, schemas.EmbedReply, "A vector for a text"),
)


@dataclass(frozen=True, slots=True)
class TaskRoutes:
    """Answers the task routes; `clock` is that of the pipeline's deadlines."""

    state: ServiceState
    limits: Server
    clock: Callable[[], float] = time.monotonic

    def routes(self) -> list[PlainRoute]:
        return [PlainRoute(route.path, partial(self.answer, route), methods=["POST"]) for route in ROUTES]

    async def answer(self, route: TaskRoute, request: Request) -> Response:
        started = self.clock()
        context = context_of(request)
        context.task = route.task
        with self.state.metrics.in_progress(route.task):
            if reason := self.state.why_not_accepting():
                raise not_ready(reason)
            headers = Headers.read(request, self.limits)
            options = headers.options(context.account, started, self.limits)
            context.priority = _PRIORITIES[options.priority]
            self.state.admit(options)  # before the body is read: under overload a refusal must cost next to nothing
            answering = _Answering(self.state, self.limits, route, context, headers, options, started)
            # No variable for the body: it would keep it in memory until the response is sent.
            respond = answering.respond(await read_body(request, headers, self.limits.max_body_bytes))
            return await unless_gone(request, respond)


@dataclass(slots=True)
class _Answering:
    """One request whose body has been read, on its way to its response; long steps are done by the threads."""

    state: ServiceState
    limits: Server
    route: TaskRoute
    context: RequestContext
    headers: Headers
    options: RequestOptions
    started: float
    label_set: schemas.LabelSetVersion | None = None

    async def respond(self, data: Body) -> Response:
        self.context.received(len(data))
        if is_quick(data):
            return await self._answer(len(data), self._parse(data))
        with self.state.memory.reserved(text_memory(data)):
            num_bytes, parsing = len(data), partial(self._parse, data)
            del data
            body = await self.state.pipeline.threads.run(self.options, parsing)
            del parsing
            return await self._answer(num_bytes, body)

    async def _answer(self, num_bytes: int, body: schemas.TaskRequest) -> Response:
        self._narrow(body)
        body = await self._with_label_set(body)
        query = body.query()
        encoded = await self._encode(body, query, num_bytes)
        self.context.encoded(encoded.num_inputs, encoded.num_tokens)
        with self.state.memory.reserved(memory_of(encoded)):
            write = partial(self._write, is_large=encoded.is_reply_large)
            response = await self.state.pipeline.compute(TASKS[self.route.task], query, encoded, write, self.options)
        self.context.replied(len(response.body))
        return response

    def _parse(self, data: Body) -> schemas.TaskRequest:
        return parse(data, self.route.request, self.limits)

    async def _with_label_set(self, body: schemas.TaskRequest) -> schemas.TaskRequest:
        """The request with the labels of the stored set that it names."""
        if not isinstance(body, schemas.ClassifyRequest) or body.label_set is None:
            return body
        found = await find(self.state, body.label_set, self.options)
        self.label_set = schemas.LabelSetVersion(name=found.name, version=found.version)
        return body.with_labels_of(found.value)

    def _narrow(self, body: schemas.TaskRequest) -> None:
        """Applies what the body says about its model, deadline and priority."""
        if body.model and len(found := names_of(self.state.pipeline.models, body.model)) == 1:
            [self.context.model] = found
        self.options = self.headers.narrow(
            self.options, self.started, self.limits, timeout_ms=body.timeout_ms, priority=body.priority
        )
        self.context.priority = _PRIORITIES[self.options.priority]

    async def _encode(self, body: schemas.TaskRequest, query: Any, num_bytes: int) -> Encoded:
        pipeline, task = self.state.pipeline, TASKS[self.route.task]
        try:
            return await pipeline.encode(task, query, model=body.model, options=self.options, num_bytes=num_bytes)
        except InvalidRequest as error:
            if not error.errors:
                raise
            raise invalid([replace(one, field=body.field(one.field)) for one in error.errors]) from None

    def _write(self, answer: Answer[Any], is_large: bool) -> Response:
        self.context.model, self.context.timing = answer.model, answer.timing
        content = {
            "model": answer.model,
            "task": self.route.task,
            **({"method": answer.method, "models": answer.models} if answer.method else {}),
            "results": _in_slices(answer.results) if is_large else answer.results,
            "usage": {"tokens": answer.tokens},
        }
        if self.label_set is not None:
            content["label_set"] = self.label_set.model_dump()
        server_timing = {"Server-Timing": format_server_timing(answer.timing)}
        return Response(orjson.dumps(content), media_type="application/json", headers=server_timing)


def _in_slices(results: list[Any]) -> list[dict[str, Any]]:
    """The results as dictionaries, with lists of lists as JSON.

    orjson keeps Python's lock while it writes, which takes a tenth of a second for the largest result.
    """
    written = []
    for result in results:
        content = {field.name: getattr(result, field.name) for field in fields(result)}
        for name, value in content.items():
            if isinstance(value, tuple) and value and isinstance(value[0], tuple):
                content[name] = _in_json(value)
        written.append(content)
        between_slices()
    return written


def _in_json(lists: tuple[tuple[Any, ...], ...]) -> orjson.Fragment:
    """A list of lists, some thousand items in each call: the memory of a call's result is never less than 4 KB."""
    num_lists = 1 + SLICE_ITEMS // max(1, len(lists[0]))
    slices = []
    for start in range(0, len(lists), num_lists):
        between_slices()
        slices.append(orjson.dumps(lists[start : start + num_lists])[1:-1])
    return orjson.Fragment(b"[" + b",".join(slices) + b"]")


def memory_of(encoded: Encoded) -> int:
    """Bytes of a request's rows and of its reply, as `MemoryBudget` counts them."""
    return encoded.num_rows * ROW_BYTES + encoded.num_tokens * TOKEN_BYTES + encoded.reply_bytes


def format_server_timing(timing: Timing) -> str:
    """Milliseconds per stage, for a browser's network panel and `curl -i`."""
    tokenize, queue, compute = timing.tokenize * 1000, timing.queue * 1000, timing.compute * 1000
    return f"tokenize;dur={tokenize:.3f}, queue;dur={queue:.3f}, compute;dur={compute:.3f}"


def document(router: APIRouter, limits: Server) -> None:
    """Adds the routes to those that the OpenAPI document describes."""
    for route in ROUTES:
        example = EXAMPLES[route.task]
        router.add_api_route(
            route.path,
            described_elsewhere,
            methods=["POST"],
            name=route.task,
            operation_id=route.task,
            summary=route.summary,
            description=route.request.__doc__,
            responses={
                200: {
                    "model": route.reply,
                    "description": route.reply.__doc__,
                    "headers": REPLY_HEADERS,
                    "content": {"application/json": {"example": example.reply}},
                },
                **TASK_ERRORS,
            },
            tags=["tasks"],
            response_class=Response,
            openapi_extra=request_body(route.request, example.requests, limits),
        )
