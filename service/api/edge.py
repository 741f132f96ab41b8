"""The outermost ring: gives every request an id, turns every error into its reply, logs and counts every exit.

Pure ASGI. Knows no route: a front tells it the task and the model through the `Exchange` in the scope. HEAD is answered
like GET; the HTTP server below leaves the body out.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.api.problems import from_http_exception, problem
from service.errors import ServiceError
from service.metrics import Metrics

logger = logging.getLogger("service.access")

SCOPE_KEY = "erlangshen.exchange"
CLIENT_GONE = 499
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_PROBES = {"/livez", "/readyz", "/metrics"}


@dataclass(slots=True)
class Exchange:
    """What is learnt of a request on its way; `status` is 0 until a reply starts."""

    request_id: str
    started: float
    task: str | None = None
    model: str | None = None
    status: int = 0


def exchange_of(request: Request) -> Exchange:
    return cast("Exchange", request.scope[SCOPE_KEY])


class Edge:
    def __init__(self, app: ASGIApp, metrics: Metrics, clock: Callable[[], float] = time.perf_counter) -> None:
        self._app = app
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(request_id_of(Headers(scope=scope)), self._clock())
        is_head = scope["method"] == "HEAD"
        inner = {**scope, SCOPE_KEY: exchange, "method": "GET" if is_head else scope["method"]}
        token = logs.request_id.set(exchange.request_id)
        try:
            await self._serve(exchange, inner, receive, send)
        finally:
            self._finish(exchange, scope["method"], inner)
            logs.request_id.reset(token)

    async def _serve(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = exchange.request_id
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except ClientDisconnect:
            exchange.status = CLIENT_GONE
        except Exception as error:
            # The edge: whatever went wrong inside, the caller gets a reply.
            if exchange.status:
                raise
            await reply_to(error, exchange)(scope, receive, send_named)

    def _finish(self, exchange: Exchange, method: str, scope: Scope) -> None:
        seconds = self._clock() - exchange.started
        if exchange.task is not None:
            self._metrics.request_done(exchange.task, exchange.model, exchange.status or 500, seconds)
        route = getattr(scope.get("route"), "path", None)
        level = logging.DEBUG if route in _PROBES else logging.INFO
        fields = {
            "method": method,
            "route": route,
            "status": exchange.status,
            "duration_ms": round(seconds * 1000, 3),
        }
        if exchange.model is not None:
            fields["model"] = exchange.model
        logger.log(level, "request", extra=fields)


def reply_to(error: Exception, exchange: Exchange) -> Response:
    """The ladder: ours by its code, the router's by its status, all else an internal error that tells nothing."""
    if isinstance(error, ServiceError):
        return problem(error, exchange.request_id)
    if isinstance(error, HTTPException):
        response = problem(from_http_exception(error), exchange.request_id)
        response.headers.update(error.headers or {})
        return response
    logger.error("internal error", exc_info=error)
    return problem(ServiceError("internal error; the log has more under this request_id"), exchange.request_id)


def request_id_of(headers: Headers) -> str:
    """The caller's X-Request-ID where it is short and plain, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
