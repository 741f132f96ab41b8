"""The native protocol: one POST route per task, all answered the same way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from service.api import schemas
from service.api.openapi import ERRORS, EXAMPLES, REPLY_HEADERS, described_elsewhere, request_body
from service.api.problems import invalid
from service.api.request import (
    Headers,
    PlainRoute,
    RequestContext,
    context_of,
    not_ready,
    parse,
    read_body,
    unless_gone,
)
from service.api.state import ServiceState
from service.domain import RANKS, RequestOptions, Timing
from service.errors import InvalidRequest
from service.pipeline import Answer
from service.settings import Server
from service.tasks.registry import TASKS

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
    TaskRoute("mrc", schemas.MrcRequest, schemas.MrcReply, "Which choice answers a question on a passage"),
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
            data = await read_body(request, headers, self.limits.max_body_bytes)
            body = parse(data, route.request, self.limits)
            if body.model in self.state.pipeline.models:
                context.model = body.model
            options = headers.narrow(options, started, self.limits, timeout_ms=body.timeout_ms, priority=body.priority)
            context.priority = _PRIORITIES[options.priority]
            answer = await unless_gone(request, self._compute(route, body, options, len(data), context))
        context.model, context.timing = answer.model, answer.timing
        content = {
            "model": answer.model,
            "task": route.task,
            "results": answer.results,
            "usage": {"tokens": answer.tokens},
        }
        server_timing = {"Server-Timing": format_server_timing(answer.timing)}
        return Response(orjson.dumps(content), media_type="application/json", headers=server_timing)

    async def _compute(
        self,
        route: TaskRoute,
        body: schemas.TaskRequest,
        options: RequestOptions,
        num_bytes: int,
        context: RequestContext,
    ) -> Answer[Any]:
        pipeline, task, query = self.state.pipeline, TASKS[route.task], body.query()
        try:
            encoded = await pipeline.encode(task, query, model=body.model, options=options, num_bytes=num_bytes)
        except InvalidRequest as error:
            if not error.errors:
                raise
            raise invalid([replace(one, field=body.field(one.field)) for one in error.errors]) from None
        context.encoded(len(encoded.rows), encoded.num_tokens)
        return await pipeline.compute(task, query, encoded, options)


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
                **ERRORS,
            },
            tags=["tasks"],
            response_class=Response,
            openapi_extra=request_body(route.request, example.requests, limits),
        )
