"""The native protocol: one POST route per task, all answered the same way."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from service.api import schemas
from service.api.calls import Call, Protocol
from service.api.exchange import Exchange, results_json, server_timing
from service.api.openapi import EXAMPLES, REPLY_HEADERS, TASK_ERRORS, described_elsewhere, request_body
from service.pipeline import Answer
from service.settings import Server


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


async def _answer(task: str, exchange: Exchange, body: schemas.TaskRequest) -> Response:
    exchange.narrow(timeout_ms=body.timeout_ms, priority=body.priority)
    label_set = None
    if isinstance(body, schemas.ClassifyRequest) and body.label_set is not None:
        found = await exchange.label_set(body.label_set, body)
        label_set = schemas.LabelSetVersion(name=found.name, version=found.version)
        body = body.with_labels_of(found.value)
    write = partial(_write, task, label_set)
    query = body.query(exchange.limits.max_windows)
    return await exchange.answer(task, query, write, model=body.model, rename=body.field)


def _write(task: str, label_set: schemas.LabelSetVersion | None, answer: Answer[Any], is_large: bool) -> Response:
    content = {
        "model": answer.model,
        "task": task,
        **({"method": answer.method, "models": answer.models} if answer.method else {}),
        "results": results_json(answer.results, is_large),
        "usage": {"tokens": answer.tokens} | ({"label_tokens": answer.label_tokens} if task == "classify" else {}),
    }
    if label_set is not None:
        content["label_set"] = label_set.model_dump()
    return Response(orjson.dumps(content), media_type="application/json", headers=server_timing(answer.timing))


def _has_inputs(value: Any, models: object) -> bool:
    return isinstance(value, dict) and "inputs" in value


PROTOCOL = Protocol(
    "native",
    "This service",
    tuple(
        Call(
            "POST",
            route.path,
            partial(_answer, route.task),
            body=route.request,
            task=route.task,
            roots=(route.path,),
            claims=_has_inputs,
            wants="`inputs`",
            narrows=True,
        )
        for route in ROUTES
    ),
    has_prefix=False,
)


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
