"""Error responses: application/problem+json (RFC 9457) with a stable code and the fields at fault.

Converts the errors of this service, of pydantic and of the router. A message names the field, the problem and the
limit, and never contains a request's text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from http import HTTPStatus
from typing import Any

import orjson
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from service.errors import FieldError, InvalidRequest, MethodNotAllowed, NotFound, ServiceError, Unauthorized

ErrorBody = Callable[[ServiceError, str], Any]
"""Makes the JSON of an error in the shape of a protocol, of the error and the id of the request."""
MEDIA_TYPE = "application/problem+json"
MAX_LISTED = 20
MAX_NAME = 64


class FieldProblem(BaseModel):
    """One problem of one field."""

    field: str = Field(description="Path of the field, as in `inputs[3].text`.")
    message: str


class Problem(BaseModel):
    """An error by RFC 9457, extended by `code`, `errors` and `request_id`."""

    type: str = Field(description="Always `about:blank`; `code` identifies the error.")
    title: str = Field(description="Reason phrase of the status.")
    status: int
    code: str = Field(description="Stable identifier of the error, for programs; see docs/api.md.")
    detail: str = Field(description="Explanation for people: the problem, and the limit that was exceeded.")
    errors: list[FieldProblem] = Field(description="The fields at fault; empty if the problem is not one of a field.")
    request_id: str


def error_answer(error: ServiceError, request_id: str, body: ErrorBody | None = None) -> Response:
    """The response for an error: a problem, or what `body` of a protocol makes of it, with the same status and headers.

    Retryable errors have Retry-After headers.
    """
    if body is None:
        return problem(error, request_id)
    content = body(error, request_id)
    try:
        data = orjson.dumps(content)
    except orjson.JSONEncodeError:  # a lone surrogate in the name of a field
        data = json.dumps(content).encode()
    return Response(data, error.status, _headers(error), "application/json")


def problem(error: ServiceError, request_id: str) -> Response:
    """The response for an error by RFC 9457."""
    shown = error.errors[:MAX_LISTED]
    body = {
        "type": "about:blank",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "code": error.code,
        "detail": error.detail,
        "errors": [{"field": one.field, "message": one.message} for one in shown],
        "request_id": request_id,
    }
    return Response(_dump(body), error.status, _headers(error), MEDIA_TYPE)


def _dump(body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        # The name of a field may contain a lone surrogate, which UTF-8 cannot encode.
        body["errors"] = [{name: _printable(text) for name, text in one.items()} for one in body["errors"]]
        return orjson.dumps(body | {"detail": _printable(body["detail"])})


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _headers(error: ServiceError) -> dict[str, str]:
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": 'Bearer realm="erlangshen"'}
    if not error.retryable:
        return {}
    seconds = max(error.retry_after_s if error.retry_after_s is not None else 1.0, 0.001)
    return {"Retry-After": str(math.ceil(seconds)), "Retry-After-Ms": str(math.ceil(seconds * 1000))}


def from_http_exception(error: HTTPException) -> ServiceError:
    """Converts an error of the router: unknown route, or unsupported method."""
    if error.status_code == 404:
        return NotFound("no such route; GET /docs lists all routes")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("allow") or (error.headers or {}).get("Allow", "")
        return MethodNotAllowed(f"this route supports {allowed or 'another method'}")
    return ServiceError("the request could not be served")


def from_validation_error(error: ValidationError, request: type[BaseModel]) -> InvalidRequest:
    """Converts pydantic's errors, in the order of the fields."""
    shown = error.errors(include_url=False, include_input=False)[:MAX_LISTED]
    found = [FieldError(path_of(one["loc"]), _message(one, request)) for one in shown]
    return invalid(found, error.error_count())


def invalid(found: Sequence[FieldError], count: int | None = None) -> InvalidRequest:
    """One InvalidRequest for several field errors. `count` is the total if it exceeds len(found)."""
    return InvalidRequest(_detail(found, count or len(found)), errors=found)


def with_fields(error: ServiceError, found: Sequence[FieldError]) -> ServiceError:
    """The same error, of these fields."""
    return type(error)(_detail(found, len(found)), errors=found, retry_after_s=error.retry_after_s)


def _detail(found: Sequence[FieldError], count: int) -> str:
    """The first one, and the number of the others."""
    first = found[0]
    tail = f" (and {count - 1} more)" if count > 1 else ""
    head = f"{first.field}: {first.message}" if first.field else f"the body {first.message}"
    return head + tail


def path_of(location: Sequence[str | int]) -> str:
    """("inputs", 3, "text") -> "inputs[3].text"."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part[:MAX_NAME]}" if path else part[:MAX_NAME]
    return path


_MESSAGES = {
    "missing": "is required",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "list_type": "must be a list",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "string_too_short": "must not be empty",
    "string_too_long": "must be at most {max_length} characters long",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
}


def _message(one: Any, request: type[BaseModel]) -> str:
    kind = one["type"]
    if kind == "extra_forbidden":
        return _unknown_field(one["loc"], request)
    if kind in _MESSAGES:
        return _MESSAGES[kind].format(**one.get("ctx", {}))
    return str(one["msg"])


def _unknown_field(location: Sequence[str | int], request: type[BaseModel]) -> str:
    parts = getattr(request, "parts", {})
    known = (request if len(location) == 1 else parts.get(location[0], request)).model_fields
    near = get_close_matches(str(location[-1])[:MAX_NAME], list(known), n=1)
    hint = f"did you mean {near[0]}?" if near else f"the known ones are {', '.join(known)}"
    return f"unknown field; {hint}"
