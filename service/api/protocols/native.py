"""The native protocol: six POST routes, each the same step with other words.

Reads the body, checks it, hands the query to the pipeline and writes the answer. Knows no batching and no model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from service.api import schemas
from service.api.middleware import RequestContext, context_of
from service.api.openapi import ERRORS, EXAMPLES, REPLY_HEADERS, request_body
from service.api.problems import from_validation_error, invalid
from service.api.request import (
    parse_json,
    priority_asked,
    read_body,
    require_ready,
    seconds_allowed,
    seconds_at_most,
    unless_gone,
)
from service.api.shortcut import Endpoint
from service.domain import RANKS, Priority, RequestOptions, Timing
from service.errors import InvalidRequest
from service.metrics import Metrics
from service.pipeline import Pipeline
from service.settings import Server
from service.tasks.registry import TASKS

Clock = Callable[[], float]
Ready = Callable[[], str | None]
Admit = Callable[[RequestOptions], None]
"""Raises where a request that waits on these terms would be refused, however small it is."""


@dataclass(frozen=True, slots=True)
class Route:
    """One task on the wire; the path is /v1/ and the task's name."""

    task: str
    request: type[schemas.TaskRequest]
    reply: type[BaseModel]
    summary: str

    @property
    def path(self) -> str:
        return f"/v1/{self.task}"


ROUTES = (
    Route("classify", schemas.ClassifyRequest, schemas.ClassifyReply, "Which label fits a text"),
    Route("similarity", schemas.SimilarityRequest, schemas.SimilarityReply, "Do two texts mean the same"),
    Route("mrc", schemas.MrcRequest, schemas.MrcReply, "Which choice answers a question on a passage"),
    Route("nli", schemas.NliRequest, schemas.NliReply, "Does a hypothesis follow from a premise"),
    Route("fill-mask", schemas.FillMaskRequest, schemas.FillMaskReply, "What stands in the place of a mask"),
    Route("embed", schemas.EmbedRequest, schemas.EmbedReply, "A vector for a text"),
)


@dataclass(frozen=True, slots=True)
class TaskRoutes:
    """What a route needs to answer."""

    pipeline: Pipeline
    accepting: Ready
    limits: Server
    metrics: Metrics
    admit: Admit
    clock: Clock = time.monotonic

    async def answer(self, route: Route, request: Request) -> Response:
        started = self.clock()
        context = context_of(request)
        context.task = route.task
        with self.metrics.in_progress(route.task):
            require_ready(self.accepting)
            # Where there is far too much to do, a refusal must cost next to nothing: it comes before the body is read.
            latest = started + seconds_at_most(request, self.limits)
            self.admit(_options(context, priority_asked(request, None), latest))
            data = await read_body(request, self.limits.max_body_bytes)
            body = parse(parse_json(data), route.request, self.limits)
            if body.model in self.pipeline.models:
                context.model = body.model
            deadline = started + seconds_allowed(request, body.timeout_ms, self.limits)
            options = _options(context, priority_asked(request, body.priority), deadline)
            reply = await unless_gone(request, self._ask(route, body, options, len(data), context))
        context.model, context.timing = reply.model, reply.timing
        content = {
            "model": reply.model,
            "task": route.task,
            "results": reply.results,
            "usage": {"tokens": reply.tokens},
        }
        headers = {"Server-Timing": server_timing(reply.timing)}
        return Response(orjson.dumps(content), media_type="application/json", headers=headers)

    async def _ask(
        self, route: Route, body: schemas.TaskRequest, options: RequestOptions, num_bytes: int, context: RequestContext
    ) -> Any:
        try:
            return await self.pipeline.answer(
                TASKS[route.task],
                body.query(),
                model=body.model,
                options=options,
                num_bytes=num_bytes,
                on_encoded=context.encoded,
            )
        except InvalidRequest as error:
            if not error.errors:
                raise
            raise invalid([replace(one, field=body.field(one.field)) for one in error.errors]) from None


def _options(context: RequestContext, asked: Priority, deadline: float) -> RequestOptions:
    caller = context.caller
    context.priority = caller.priority(asked)
    return RequestOptions(deadline, RANKS[context.priority], caller.name, caller.permissions.weight)


def parse(value: Any, request: type[schemas.TaskRequest], limits: Server) -> schemas.TaskRequest:
    """The wire model of a decoded body; InvalidRequest names every field that is wrong."""
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    try:
        return request.model_validate(value, context=limits)
    except ValidationError as error:
        raise from_validation_error(error, request) from None


def server_timing(timing: Timing) -> str:
    """Where the time went, in milliseconds, for the browser's network panel and for curl -i."""
    tokenize, queue, compute = timing.tokenize * 1000, timing.queue * 1000, timing.compute * 1000
    return f"tokenize;dur={tokenize:.3f}, queue;dur={queue:.3f}, compute;dur={compute:.3f}"


def endpoints(front: TaskRoutes) -> dict[str, Endpoint]:
    """What answers, by path."""
    return {route.path: partial(front.answer, route) for route in ROUTES}


def router(endpoints: Mapping[str, Endpoint], limits: Server) -> APIRouter:
    routes = APIRouter(tags=["tasks"])
    for route in ROUTES:
        example = EXAMPLES[route.task]
        routes.add_api_route(
            route.path,
            _endpoint(endpoints[route.path]),
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
            response_class=Response,
            openapi_extra=request_body(route.request, example.requests, limits),
        )
    return routes


def _endpoint(answer: Endpoint) -> Endpoint:
    """With the signature from which the router learns that it wants the request and nothing else."""

    async def endpoint(request: Request) -> Response:
        return await answer(request)

    return endpoint
