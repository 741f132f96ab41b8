"""The Model Context Protocol over streamable HTTP: the tasks as tools of a language model.

Stateless: a POST holds one JSON-RPC message, and its response the answer, as JSON. There are no sessions and no streams
of the server, so a GET is answered with 405, and at a stop only requests in progress are waited for. Both forms of the
protocol are served: that with a handshake (`initialize`, up to 2025-11-25) and that without (2026-07-28), which names
its version in each request.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from starlette.responses import Response

from service.api.calls import Call, Protocol
from service.api.exchange import Exchange, json_response
from service.api.field_types import Lenient
from service.api.problems import error_answer
from service.api.protocols.mcp_tools import TOOLS, Tool, offered
from service.api.request import not_ready
from service.errors import Forbidden, InvalidRequest, MalformedBody, MethodNotAllowed, ServiceError
from service.settings import VERSION

HANDSHAKE_VERSIONS: Final = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
STATELESS_VERSION: Final = "2026-07-28"
VERSIONS: Final = (*HANDSHAKE_VERSIONS, STATELESS_VERSION)
PARSE_ERROR, INVALID, NO_METHOD, INVALID_PARAMS, INTERNAL = -32700, -32600, -32601, -32602, -32603
HEADER_MISMATCH, NO_VERSION, UNAVAILABLE = -32020, -32022, -32000
VERSION_HEADER, METHOD_HEADER, NAME_HEADER = "mcp-protocol-version", "mcp-method", "mcp-name"
_META = "io.modelcontextprotocol"
_SERVER = {"name": "erlangshen-service", "version": VERSION}
_INSTRUCTIONS = (
    "Chinese text understanding without writing text: classify texts by labels of your own, compare their meaning, "
    "answer questions on a passage, and make embeddings. Several texts in one call are faster than several calls."
)
_LIST_TTL_MS = 60_000
"""For how long a client may keep the list of tools: it changes with the served models only."""


class RpcMessage(Lenient):
    """A JSON-RPC request, or a notification, which has no `id`."""

    jsonrpc: Literal["2.0"]
    method: str
    id: str | int | None = None
    params: dict[str, Any] | None = None


class RpcError(Exception):
    """An error of the protocol, with the status of its response."""

    def __init__(self, code: int, message: str, data: Any = None, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.message, self.data, self.status = code, message, data, status


async def post(exchange: Exchange, message: RpcMessage) -> Response:
    """`POST /mcp`."""
    check_origin(exchange)
    if "id" not in message.model_fields_set:
        return Response(status_code=202)  # a notification: none changes anything here
    try:
        is_stateless = _check_version(exchange.request.headers, message)
        result = await _answer(exchange, message, is_stateless)
    except RpcError as error:
        found = {"code": error.code, "message": error.message} | ({} if error.data is None else {"data": error.data})
        return json_response({"jsonrpc": "2.0", "id": message.id, "error": found}, status=error.status)
    except ServiceError as error:
        exchange.context.code = error.code
        return error_answer(error, exchange.context.request_id, partial(_error, message.id))
    return json_response({"jsonrpc": "2.0", "id": message.id, "result": result})


async def no_stream(exchange: Exchange, _: None) -> Response:
    """`GET /mcp` and `DELETE /mcp`: no streams of the server, and no sessions to end."""
    raise MethodNotAllowed("this server is stateless: send each message as a POST")


def check_origin(exchange: Exchange) -> None:
    """A page may call only if its origin is that of the server, or one of the setting for CORS. Raises Forbidden."""
    origin = exchange.request.headers.get("origin")
    if origin is None:
        return
    allowed = exchange.request.app.state.cors_origins
    if "*" in allowed or origin in allowed or urlsplit(origin).netloc == exchange.request.headers.get("host"):
        return
    raise Forbidden("pages of this origin may not call this server; name it in --cors-origins")


def _check_version(headers: Mapping[str, str], message: RpcMessage) -> bool:
    """Whether the request is one without a handshake. Raises RpcError."""
    version = headers.get(VERSION_HEADER)
    if version is None and message.method != "server/discover":
        return False
    if version not in VERSIONS:
        raise RpcError(NO_VERSION, "Unsupported protocol version", {"supported": list(VERSIONS), "requested": version})
    if version != STATELESS_VERSION:
        return False
    meta = (message.params or {}).get("_meta")
    wanted = (f"{_META}/protocolVersion", f"{_META}/clientCapabilities")
    if not isinstance(meta, dict) or any(name not in meta for name in wanted):
        raise RpcError(INVALID_PARAMS, f"params._meta must have {' and '.join(wanted)}")
    if meta[wanted[0]] != version:
        raise RpcError(HEADER_MISMATCH, f"the header {VERSION_HEADER} is not the version in params._meta")
    if headers.get(METHOD_HEADER) != message.method:
        raise RpcError(HEADER_MISMATCH, f"the header {METHOD_HEADER} is not the method of the message")
    if message.method == "tools/call" and _decode(headers.get(NAME_HEADER)) != (message.params or {}).get("name"):
        raise RpcError(HEADER_MISMATCH, f"the header {NAME_HEADER} is not the name of the tool")
    return True


def _decode(value: str | None) -> str | None:
    """A header's value; one that is not plain ASCII comes as `=?base64?...?=`."""
    if value is None or not (value.startswith("=?base64?") and value.endswith("?=")):
        return value
    try:
        return base64.b64decode(value[9:-2], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


async def _answer(exchange: Exchange, message: RpcMessage, is_stateless: bool) -> dict[str, Any]:
    models = exchange.state.pipeline.models
    match message.method:
        case "initialize" if not is_stateless:
            return _initialize(message.params or {})
        case "server/discover" if is_stateless:
            result = {"supportedVersions": list(VERSIONS), "capabilities": _capabilities()}
            return _complete(result | {"instructions": _INSTRUCTIONS} | _kept(), True)
        case "ping":
            return _complete({}, is_stateless)
        case "tools/list":
            tools = [tool.description for tool in offered(models)]
            return _complete({"tools": tools} | (_kept() if is_stateless else {}), is_stateless)
        case "tools/call":
            return _complete(await _call(exchange, message.params or {}), is_stateless)
    raise RpcError(NO_METHOD, "Method not found", status=404 if is_stateless else 200)


def _initialize(params: dict[str, Any]) -> dict[str, Any]:
    asked = params.get("protocolVersion")
    return {
        "protocolVersion": asked if asked in HANDSHAKE_VERSIONS else HANDSHAKE_VERSIONS[-1],
        "capabilities": _capabilities(),
        "serverInfo": _SERVER,
        "instructions": _INSTRUCTIONS,
    }


def _capabilities() -> dict[str, Any]:
    return {"tools": {"listChanged": False}}


def _kept() -> dict[str, Any]:
    return {"ttlMs": _LIST_TTL_MS, "cacheScope": "private"}


def _complete(result: dict[str, Any], is_stateless: bool) -> dict[str, Any]:
    if not is_stateless:
        return result
    return {"_meta": {f"{_META}/serverInfo": _SERVER}, "resultType": "complete"} | result


async def _call(exchange: Exchange, params: dict[str, Any]) -> dict[str, Any]:
    """The result of a tool. What is wrong with its arguments is a result, too: the language model can correct it."""
    name, arguments = params.get("name"), params.get("arguments")
    tool = TOOLS.get(name) if isinstance(name, str) else None
    if tool is None or tool not in offered(exchange.state.pipeline.models):
        raise RpcError(INVALID_PARAMS, "there is no such tool; tools/list names all", status=200)
    if arguments is not None and not isinstance(arguments, dict):
        raise RpcError(INVALID_PARAMS, "arguments must be an object", status=200)
    if reason := exchange.state.why_not_accepting():
        raise not_ready(reason)
    exchange.state.admit(exchange.options)
    exchange.context.task = tool.task
    try:
        return await _run(exchange, tool, arguments or {})
    except InvalidRequest as error:
        exchange.context.code = error.code
        return {"content": [{"type": "text", "text": error.detail}], "isError": True}


async def _run(exchange: Exchange, tool: Tool, arguments: dict[str, Any]) -> dict[str, Any]:
    structured = await tool.run(exchange, arguments)
    text = tool.summary(structured)
    return {"content": [{"type": "text", "text": text}], "structuredContent": structured, "isError": False}


def _error(message_id: str | int | None, error: ServiceError, request_id: str) -> dict[str, Any]:
    codes = {400: INVALID, 404: NO_METHOD, 422: INVALID, 500: INTERNAL}
    code = PARSE_ERROR if isinstance(error, MalformedBody) else codes.get(error.status, UNAVAILABLE)
    data = {"code": error.code, "request_id": request_id}
    return {"jsonrpc": "2.0", "id": message_id, "error": {"code": code, "message": error.detail, "data": data}}


def error_body(error: ServiceError, request_id: str) -> dict[str, Any]:
    """A JSON-RPC error of a request whose `id` is not known."""
    return _error(None, error, request_id)


PROTOCOL = Protocol(
    "mcp",
    "Model Context Protocol",
    (
        Call("POST", "", post, RpcMessage, summary="One JSON-RPC message"),
        Call("GET", "", no_stream, summary="No streams: 405"),
        Call("DELETE", "", no_stream, is_limited=False, summary="No sessions: 405"),
    ),
    error_body,
)
