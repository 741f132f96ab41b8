"""Named label sets over HTTP: list, read, write, delete; versions by ETag and If-Match (RFC 9110)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.api.json_body import max_set_values, parse
from service.api.label_set_versions import LabelSetVersions
from service.api.openapi import ERRORS, NO_KEY, described_elsewhere, request_body
from service.api.operations import ok
from service.api.request import Headers, PlainRoute, context_of, read_body
from service.api.schemas import LabelSetBody, LabelSetReply, LabelSetsReply
from service.api.state import ServiceState
from service.domain import RequestOptions
from service.errors import LabelSetNotFound
from service.settings import Server
from service.stores.label_sets import LabelSet
from service.tasks.hierarchy import tree_of

T = TypeVar("T")

PATH = "/v1/label-sets"
DISABLED = "this server keeps no label sets; start it with --data-dir DIR"


def enabled(state: ServiceState) -> LabelSetVersions:
    """Raises LabelSetNotFound."""
    if state.label_sets is None:
        raise LabelSetNotFound(DISABLED)
    return state.label_sets


@dataclass(frozen=True, slots=True)
class LabelSetRoutes:
    state: ServiceState
    limits: Server

    def routes(self) -> list[PlainRoute]:
        return [
            PlainRoute(PATH, self.list, methods=["GET"]),
            PlainRoute(f"{PATH}/{{name}}", self.one, methods=["GET", "PUT", "DELETE"]),
        ]

    async def list(self, request: Request) -> Response:
        found = await self._run(request, enabled(self.state).label_sets.all)
        return _json({"label_sets": [_info(each) for each in found]})

    async def one(self, request: Request) -> Response:
        name, versions = request.path_params["name"], enabled(self.state)
        if request.method == "PUT":
            return await self._put(request, name, versions)
        if request.method == "DELETE":
            await self._run(request, partial(versions.label_sets.delete, name, request.headers.get("if-match")))
            versions.forget(name)
            return Response(status_code=204)
        found = await self._run(request, partial(versions.label_sets.get, name))
        return _one(found, versions.progress(found))

    async def _put(self, request: Request, name: str, versions: LabelSetVersions) -> Response:
        data = await read_body(request, Headers.read(request, self.limits), self.limits.max_body_bytes)
        if_match = "" if request.headers.get("if-none-match") == "*" else request.headers.get("if-match")
        owner = context_of(request).account.name

        def write() -> LabelSet[LabelSetBody]:
            body = parse(data, LabelSetBody, self.limits, max_set_values(self.limits))
            if body.hierarchy is not None:
                tree_of(body.label_list, body.hierarchy)
            return versions.label_sets.put(name, body.model_dump(exclude_none=True), len(body.labels), owner, if_match)

        written = await self._run(request, write)
        await versions.prepare(written)
        progress = versions.progress(written)
        if progress is not None and progress["done"] < progress["of"]:
            return _one(written, progress, status=202)
        return _one(written, progress, status=201 if written.version == 1 else 200)

    async def _run(self, request: Request, call: Callable[[], T]) -> T:
        account = context_of(request).account
        options = RequestOptions(account=account.name, weight=account.permissions.weight)
        return await self.state.pipeline.threads.run(options, call)


def _info(label_set: LabelSet[LabelSetBody]) -> dict[str, Any]:
    return {
        "name": label_set.name,
        "version": label_set.version,
        "num_labels": label_set.num_labels,
        "owner": label_set.owner,
    }


def _one(label_set: LabelSet[LabelSetBody], progress: dict[str, Any] | None, status: int = 200) -> Response:
    content = {"question": None, "hierarchy": None} | label_set.value.model_dump(exclude_none=True)
    return _json(_info(label_set) | {"vectors": progress} | content, status, {"ETag": label_set.etag})


def _json(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, "application/json")


_EXAMPLE = {"labels": ["退款", "物流", "发票", "投诉"], "question": "用户想解决什么问题？"}
_STORED = {"name": "support", "version": 1, "num_labels": 4, "owner": ""}
_NAME = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "Letters of any script, digits and `._-` between them, at most 64 bytes of UTF-8.",
    "schema": {"type": "string"},
}
_VERSION = {
    "name": "If-Match",
    "in": "header",
    "description": "ETag of the version to replace; another one is not replaced, and the response is 412.",
    "schema": {"type": "string"},
}


def document(router: APIRouter, limits: Server) -> None:
    """Adds these routes to the OpenAPI document."""
    reply = ok(_STORED | {"vectors": {"done": 4, "of": 4, "error": None}} | _EXAMPLE, LabelSetReply)
    common = NO_KEY | {status: ERRORS[status] for status in (404, 422, 503)}
    write = common | {status: ERRORS[status] for status in (400, 408, 412, 413, 415, 507)}
    add = partial(router.add_api_route, endpoint=described_elsewhere, tags=["label sets"], response_class=Response)
    listed = ok({"label_sets": [_STORED]}, LabelSetsReply) | common
    add(PATH, methods=["GET"], operation_id="list_label_sets", summary="All label sets", responses=listed)
    one = f"{PATH}/{{name}}"
    add(
        one,
        methods=["GET"],
        operation_id="read_label_set",
        summary="A label set",
        responses=reply | common,
        openapi_extra={"parameters": [_NAME]},
    )
    body = request_body(LabelSetBody, {"support": _EXAMPLE}, limits)
    add(
        one,
        methods=["PUT"],
        operation_id="write_label_set",
        summary="Write a label set, or its next version",
        description="Requests that are being answered keep the version with which they started. 202: the vectors of "
        "the labels are being computed; until they are kept, the version before answers.",
        responses=reply | {201: reply[200], 202: reply[200]} | write,
        openapi_extra=body | {"parameters": [_NAME, _VERSION]},
    )
    add(
        one,
        methods=["DELETE"],
        status_code=204,
        operation_id="delete_label_set",
        summary="Delete a label set",
        responses=common | {412: ERRORS[412]},
        openapi_extra={"parameters": [_NAME, _VERSION]},
    )
