"""KServe: its protocol v1 (`:predict`), and the Open Inference Protocol v2.

An instance of v1 is an input of the native request of the task, and `parameters` are its other fields.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from starlette.responses import Response

from service.api.auth import OPEN, READERS
from service.api.calls import Call, Protocol
from service.api.exchange import Exchange, json_response, results_json, server_timing
from service.api.field_types import Lenient
from service.api.native_bodies import answer_request, read_body
from service.api.protocols import open_inference
from service.api.protocols.common import DESCRIBE_MODEL
from service.api.protocols.open_inference import check_alive, find_model
from service.errors import InvalidRequest, ServiceError
from service.pipeline import Answer


class InstancesRequest(Lenient):
    """Inputs of one task."""

    instances: list[Any] = Field(min_length=1)
    parameters: dict[str, Any] = Field({}, max_length=32)


async def predict(exchange: Exchange, body: InstancesRequest) -> Response:
    """`POST /v1/models/{name}:predict`."""
    given = dict(body.parameters)
    task = given.pop("task", None)
    if task is not None and not isinstance(task, str):
        raise InvalidRequest.of("parameters.task", "must be a string")
    task, model = find_model(exchange.state.pipeline.models, exchange.request.path_params["name"], task)
    exchange.context.task = task
    if unexpected := next((name for name in ("inputs", "model") if name in given), None):
        raise InvalidRequest.of(f"parameters.{unexpected}", "is not a parameter: instances and the path say it")
    value = {**given, "inputs": body.instances} | ({} if model is None else {"model": model})
    request = read_body(exchange, task, value, _rename)
    exchange.narrow(timeout_ms=request.timeout_ms, priority=request.priority)
    return await answer_request(exchange, task, request, _write, rename=_rename)


def _rename(path: str) -> str:
    return path.replace("inputs", "instances", 1) if path.startswith("inputs") else f"parameters.{path}"


def _write(answer: Answer[Any], is_large: bool) -> Response:
    return json_response({"predictions": results_json(answer.results, is_large)}, server_timing(answer.timing))


async def alive(exchange: Exchange, _: None) -> Response:
    """Liveness of v1: `GET /` below the prefix. At the root, that is the playground's."""
    check_alive(exchange)
    return json_response({"status": "alive"})


async def list_models(exchange: Exchange, _: None) -> Response:
    """`GET /v1/models`."""
    return json_response({"models": list(exchange.state.pipeline.models)})


def error_body(error: ServiceError, request_id: str) -> dict[str, Any]:
    return {"error": error.detail, "code": error.code, "request_id": request_id}


_PREDICT = "/v1/models/{name}:predict"
PROTOCOL = Protocol(
    "kserve",
    "KServe v1, Open Inference Protocol v2",
    (
        *open_inference.CALLS,
        Call("GET", "/", alive, scopes=OPEN, summary="Liveness"),
        Call("GET", "/v1/models", list_models, scopes=READERS, summary="The names of the served models"),
        DESCRIBE_MODEL,
        Call(
            "POST",
            _PREDICT,
            predict,
            InstancesRequest,
            task="classify",
            roots=(_PREDICT,),
            narrows=True,
            summary="Any task, with inputs as the native protocol has them",
        ),
    ),
    error_body,
)
