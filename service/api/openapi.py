"""What FastAPI cannot derive by itself: request bodies that are parsed by hand, headers, and the errors' one shape."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.api.examples import ERROR
from service.api.guards import PRIORITY_HEADER, TIMEOUT_HEADER
from service.api.problems import MEDIA_TYPE, Problem
from service.domain import RANKS
from service.settings import Server

_REF = "#/components/schemas/{model}"
_CODES = {
    400: ("malformed_body", "Not JSON, not UTF-8, or nested too deep.", "the body is not JSON: it is empty"),
    401: ("unauthorized", "No API key, or one that is not known.", "this API key is not known"),
    403: ("forbidden", "The key's scopes do not reach this route.", "this route needs a key with the scope infer"),
    404: ("model_not_found", "No such model.", "model: not served here; there is mini"),
    408: ("request_timeout", "The body came too slowly.", "the body of the request took too long"),
    413: ("body_too_large", "The body is above the limit.", "the body is larger than 8388608 bytes"),
    415: ("unsupported_encoding", "The body is compressed.", "the body is compressed; send it as it is"),
    422: ("invalid_request", "A field is wrong, empty, too long or unknown.", ERROR["detail"]),
    429: ("queue_full", "Too much is waiting, or your key is at its limit: see Retry-After.", "the queue is full"),
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


_MORE_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"description": "`Bearer`.", "schema": {"type": "string"}}},
    429: _RETRY_HEADERS,
    503: _RETRY_HEADERS,
}


def _error(status: int) -> dict[str, Any]:
    code, description, detail = _CODES[status]
    errors = ERROR["errors"] if status == 422 else []
    example = {**ERROR, "title": HTTPStatus(status).phrase, "status": status, "code": code, "detail": detail}
    return {
        "description": description,
        "headers": {"X-Request-ID": _ID_HEADER, **_MORE_HEADERS.get(status, {})},
        "content": {
            MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}, "example": {**example, "errors": errors}}
        },
    }


ERRORS: dict[int | str, dict[str, Any]] = {status: _error(status) for status in _CODES}
NOT_READY: dict[int | str, dict[str, Any]] = {503: ERRORS[503]}
NO_KEY: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (401, 403)}
_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Your API key."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same, in a header of ours."},
}
_KEYLESS = ("/livez", "/readyz")


def _parameters(limits: Server) -> list[dict[str, Any]]:
    return [
        {
            "name": "X-Request-ID",
            "in": "header",
            "description": "Your id for this request; the reply and the log carry it.",
            "schema": {"type": "string"},
        },
        {
            "name": PRIORITY_HEADER,
            "in": "header",
            "description": "The same as `priority` in the body; `bulk` in one of the two is enough.",
            "schema": {"type": "string", "enum": list(RANKS)},
        },
        {
            "name": TIMEOUT_HEADER,
            "in": "header",
            "description": "The same as `timeout_ms` in the body; the shorter of the two counts.",
            "schema": {"type": "integer", "minimum": 1, "maximum": limits.max_timeout_ms},
        },
    ]


def request_body(model: type[BaseModel], examples: dict[str, dict[str, Any]], limits: Server) -> dict[str, Any]:
    """The body and the headers of a route that reads them itself."""
    content = {
        "schema": {"$ref": _REF.format(model=model.__name__)},
        "examples": {title: {"value": value} for title, value in examples.items()},
    }
    body = {"required": True, "content": {"application/json": content}}
    return {"requestBody": body, "parameters": _parameters(limits)}


def install(app: FastAPI, requests: list[type[BaseModel]], limits: Server, *, with_keys: bool) -> None:
    """Make `app.openapi()` hold the schemas of the hand-read requests and of the problem, and that keys are needed."""
    models = [(model, "validation") for model in (*requests, Problem)]
    _, definitions = models_json_schema(models, ref_template=_REF)  # type: ignore[arg-type]
    for model in requests:
        definitions["$defs"][model.__name__]["properties"]["timeout_ms"]["maximum"] = limits.max_timeout_ms

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
            if with_keys:
                _require_keys(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _require_keys(schema: dict[str, Any]) -> None:
    schema["components"]["securitySchemes"] = _KEYS
    schema["security"] = [{name: []} for name in _KEYS]
    for path in _KEYLESS:
        schema["paths"][path]["get"]["security"] = []
