"""The calls of the protocols in the OpenAPI document, each under the prefix of its protocol."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from service.api.auth import OPEN
from service.api.calls import Call, Protocol
from service.api.openapi import SCHEMA_REF, described_elsewhere

_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
Key = tuple[str, str]


def bodies_of(protocols: Iterable[Protocol]) -> list[type[BaseModel]]:
    """The wire models of all calls."""
    models = (call.body for protocol in protocols for call in protocol.calls)
    return list(dict.fromkeys(model for model in models if isinstance(model, type)))


def document(router: APIRouter, protocols: Iterable[Protocol], *, with_keys: bool) -> None:
    """Adds the calls to the document. Several calls at one path, which the body tells apart, are one operation."""
    for protocol in protocols:
        by_path: dict[Key, list[Call]] = {}
        for call in protocol.calls:
            if call.path is not None:
                by_path.setdefault((call.method, protocol.prefix + call.path), []).append(call)
        for (method, path), calls in by_path.items():
            shown = _PARAMETER.sub(r"{\1}", path)
            router.add_api_route(
                shown,
                described_elsewhere,
                methods=[method],
                operation_id=re.sub(r"\W+", "_", f"{protocol.name} {method.lower()} {path}").strip("_"),
                summary="; ".join(dict.fromkeys(call.summary for call in calls)),
                description=_description(calls),
                responses={
                    200: {"description": f"As {protocol.title} answers it."},
                    "default": {"description": f"An error in the shape of {protocol.title}."},
                },
                tags=[protocol.title],
                response_class=Response,
                openapi_extra=_extra(path, calls, with_keys),
            )


def _description(calls: Iterable[Call]) -> str:
    roots = dict.fromkeys(root for call in calls for root in call.roots)
    return f"Also at {', '.join(f'`{root}`' for root in roots)}." if roots else ""


def _extra(path: str, calls: list[Call], with_keys: bool) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    if with_keys and calls[0].scopes == OPEN:
        extra["security"] = []
    if names := _PARAMETER.findall(path):
        extra["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    models = list(dict.fromkeys(call.body for call in calls if isinstance(call.body, type)))
    if models:
        schemas = [{"$ref": SCHEMA_REF.format(model=model.__name__)} for model in models]
        examples = {call.summary: {"value": call.example} for call in calls if call.example is not None}
        content = {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}, "examples": examples}
        extra["requestBody"] = {"required": True, "content": {"application/json": content}}
    elif calls[0].content is not None:
        extra["requestBody"] = {"required": True, "content": calls[0].content}
    elif any(call.body is not None for call in calls):
        extra["requestBody"] = {"required": True, "content": {"application/octet-stream": {}}}
    return extra
