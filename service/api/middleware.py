"""The outermost ring: gives every request an id, turns every error into its reply, logs and counts every exit.

Pure ASGI. Knows no route: a front tells it the task and the model through the `Exchange` in the scope. HEAD is answered
like GET; the HTTP server below leaves the body out.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.api.accounts import ANYONE, Account
from service.api.problems import from_http_exception, problem
from service.domain import Priority, Timing
from service.errors import ServiceError
from service.metrics import Metrics
from service.tracing.trace import NO_TRACE, NO_TRACER, Trace, Tracer

logger = logging.getLogger("service.access")

SCOPE_KEY = "erlangshen.exchange"
CLIENT_GONE = 499
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_PROBES = {"/livez", "/readyz", "/metrics"}


@dataclass(slots=True)
class RequestContext:
    """What is learnt of a request on its way; `status` is 0 until a reply starts, `code` an error's."""

    request_id: str
    started: float
    trace: Trace = NO_TRACE
    caller: Account = ANYONE
    task: str | None = None
    model: str | None = None
    priority: Priority | None = None
    inputs: int | None = None
    tokens: int | None = None
    timing: Timing | None = None
    status: int = 0
    code: str | None = None

    def encoded(self, inputs: int, tokens: int) -> None:
        """The text became so many rows: from now on its tokens are the caller's, whatever becomes of the request."""
        self.inputs = inputs
        self.tokens = tokens
        self.caller.spend(tokens)


def context_of(request: Request) -> RequestContext:
    return cast("RequestContext", request.scope[SCOPE_KEY])


class RequestMiddleware:
    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        tracer: Tracer = NO_TRACER,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._tracer = tracer
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        trace = NO_TRACE if scope["path"] in _PROBES else self._tracer.begin(headers)
        context = RequestContext(request_id_of(headers), self._clock(), trace)
        is_head = scope["method"] == "HEAD"
        inner = {**scope, SCOPE_KEY: context, "method": "GET" if is_head else scope["method"]}
        token = logs.request_id.set(context.request_id)
        try:
            await self._serve(context, inner, receive, send)
        finally:
            self._finish(context, scope["method"], inner)
            logs.request_id.reset(token)

    async def _serve(self, context: RequestContext, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = context.request_id
                if context.trace.reply:
                    headers["traceresponse"] = context.trace.reply
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except ClientDisconnect:
            context.status = CLIENT_GONE
        except Exception as error:
            # The edge: whatever went wrong inside, the caller gets a reply.
            if context.status:
                raise
            await reply_to(error, context)(scope, receive, send_named)

    def _finish(self, context: RequestContext, method: str, scope: Scope) -> None:
        seconds = self._clock() - context.started
        if context.task is not None:
            code, exemplar = context.status or 500, context.trace.exemplar
            self._metrics.request_done(context.task, context.model, code, seconds, exemplar)
        if context.caller.name:
            self._metrics.key_done(context.caller.name, context.status or 500, context.tokens or 0)
        route = getattr(scope.get("route"), "path", None)
        level = logging.DEBUG if route in _PROBES else logging.INFO
        if context.trace.ids or logger.isEnabledFor(level):
            fields = _fields(context, method, route, scope.get("client"), seconds)
            logger.log(level, "request", extra=fields)
            context.trace.end({"request_id": context.request_id, **fields})


def _fields(
    context: RequestContext, method: str, route: str | None, client: tuple[str, int] | None, seconds: float
) -> dict[str, Any]:
    """The line of the access log: who asked what and what came of it, never a text and never a secret."""
    fields = {
        "method": method,
        "route": route,
        "client": client[0] if client else None,
        "key": context.caller.name or None,
        "task": context.task,
        "model": context.model,
        "priority": context.priority,
        "inputs": context.inputs,
        "tokens": context.tokens,
        "status": context.status,
        "code": context.code,
        "duration_ms": round(seconds * 1000, 3),
    }
    if timing := context.timing:
        fields["tokenize_ms"] = round(timing.tokenize * 1000, 3)
        fields["queue_ms"] = round(timing.queue * 1000, 3)
        fields["compute_ms"] = round(timing.compute * 1000, 3)
    return {name: value for name, value in fields.items() if value is not None}


def reply_to(error: Exception, context: RequestContext) -> Response:
    """The ladder: ours by its code, the router's by its status, all else an internal error that tells nothing."""
    ours = _ours(error)
    context.code = ours.code
    response = problem(ours, context.request_id)
    if isinstance(error, HTTPException):
        response.headers.update(error.headers or {})
    return response


def _ours(error: Exception) -> ServiceError:
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, HTTPException):
        return from_http_exception(error)
    logger.error("internal error", exc_info=error)
    return ServiceError("internal error; the log has more under this request_id")


def request_id_of(headers: Headers) -> str:
    """The caller's X-Request-ID where it is short and plain, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _SANE_ID.fullmatch(given) else logs.new_request_id()
