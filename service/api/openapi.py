"""What FastAPI cannot derive by itself: request bodies that are parsed by hand, headers, and the errors' one shape."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.api.examples import ERROR
from service.api.guards import TIMEOUT_HEADER
from service.api.problems import MEDIA_TYPE, Problem

_REF = "#/components/schemas/{model}"
_CODES = {
    400: ("malformed_body", "Not JSON, not UTF-8, or nested too deep.", "the body is not JSON: it is empty"),
    404: ("model_not_found", "No such model.", "model: not served here; there is mini"),
    413: ("body_too_large", "The body is above the limit.", "the body is larger than 8388608 bytes"),
    422: ("invalid_request", "A field is wrong, empty, too long or unknown.", ERROR["detail"]),
    429: ("queue_full", "Too much is waiting: come back after Retry-After.", "the queue is full"),
    500: ("inference_failed", "The model failed on this input.", "the model failed on inputs[0]"),
    503: ("unavailable", "Starting, stopping, or no replica: come back after Retry-After.", "not ready: loading"),
    504: ("deadline_exceeded", "The deadline passed first.", "the deadline passed while waiting"),
}

_ID_HEADER = {"description": "The request's id: the caller's own, or a new one.", "schema": {"type": "string"}}
REPLY_HEADERS = {
    "X-Request-ID": _ID_HEADER,
    "Server-Timing": {
        "description": "Milliseconds: `tokenize;dur=0.4, queue;dur=1.2, compute;dur=8.3`.",
        "schema": {"type": "string"},
    },
}
_RETRY_HEADERS = {
    "Retry-After": {"description": "Seconds to wait, rounded up.", "schema": {"type": "integer"}},
    "Retry-After-Ms": {"description": "The same in milliseconds.", "schema": {"type": "integer"}},
}


def _error(status: int) -> dict[str, Any]:
    code, description, detail = _CODES[status]
    errors = ERROR["errors"] if status == 422 else []
    example = {**ERROR, "title": HTTPStatus(status).phrase, "status": status, "code": code, "detail": detail}
    return {
        "description": description,
        "headers": {"X-Request-ID": _ID_HEADER, **(_RETRY_HEADERS if status in (429, 503) else {})},
        "content": {
            MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}, "example": {**example, "errors": errors}}
        },
    }


ERRORS: dict[int | str, dict[str, Any]] = {status: _error(status) for status in _CODES}
NOT_READY: dict[int | str, dict[str, Any]] = {503: ERRORS[503]}


_PARAMETERS = [
    {
        "name": "X-Request-ID",
        "in": "header",
        "description": "Your id for this request; the reply and the log carry it.",
        "schema": {"type": "string", "maxLength": 128},
    },
    {
        "name": TIMEOUT_HEADER,
        "in": "header",
        "description": "The same as `timeout_ms` in the body; the shorter of the two counts.",
        "schema": {"type": "integer", "minimum": 1},
    },
]


def request_body(model: type[BaseModel], examples: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The body and the headers of a route that reads them itself."""
    content = {
        "schema": {"$ref": _REF.format(model=model.__name__)},
        "examples": {title: {"value": value} for title, value in examples.items()},
    }
    return {"requestBody": {"required": True, "content": {"application/json": content}}, "parameters": _PARAMETERS}


def install(app: FastAPI, requests: list[type[BaseModel]]) -> None:
    """Make `app.openapi()` hold the schemas of the hand-read requests and of the problem."""
    models = [(model, "validation") for model in (*requests, Problem)]
    _, definitions = models_json_schema(models, ref_template=_REF)  # type: ignore[arg-type]

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            schema.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
