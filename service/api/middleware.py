"""The outermost middleware: an id for every request, a response for every error, the access log, metrics and traces.

Routes add the task and the model through the `RequestContext` in the scope. HEAD is answered like GET; the HTTP server
below leaves the body out.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.api.problems import ErrorBody, error_answer, from_http_exception
from service.api.request import CONTEXT_KEY, RequestContext
from service.errors import ServiceError, Unavailable
from service.metrics import Metrics
from service.tracing.trace import NO_TRACE, NO_TRACER, Tracer

logger = logging.getLogger("service.access")

CLIENT_GONE = 499
_VALID_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_QUIET_PATHS = {"/livez", "/readyz", "/metrics", "/v1/load"}
"""Polled all the time: logged at debug level and never traced."""


class RequestMiddleware:
    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        tracer: Tracer = NO_TRACER,
        clock: Callable[[], float] = time.perf_counter,
        find_error_body: Callable[[str], ErrorBody | None] = lambda path: None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._tracer = tracer
        self._clock = clock
        self._find_error_body = find_error_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given_id = headers.get("x-request-id", "")
        request_id = given_id if _VALID_ID.fullmatch(given_id) else logs.new_request_id()
        is_traced = self._tracer.is_enabled and scope["path"] not in _QUIET_PATHS
        context = RequestContext(
            request_id, self._clock(), self._tracer.begin(headers, scope) if is_traced else NO_TRACE
        )
        is_head = scope["method"] == "HEAD"
        inner = {**scope, CONTEXT_KEY: context, "method": "GET" if is_head else scope["method"]}
        token = logs.request_id.set(request_id)
        try:
            await self._serve(context, inner, receive, send)
        finally:
            self._finish(context, scope["method"], inner)
            logs.request_id.reset(token)

    async def _serve(self, context: RequestContext, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = context.request_id
                if context.trace.reply:
                    headers["traceresponse"] = context.trace.reply
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            context.status = CLIENT_GONE
        except asyncio.CancelledError:  # of a server that stops, and has waited for this request long enough
            if not context.status:
                stopping = Unavailable("the service is stopping")
                await self._error_response(stopping, context, scope)(scope, receive, send_with_id)
            raise
        except Exception as error:
            # The outermost handler: every error becomes a response, unless one has started already.
            if context.status:
                raise
            await self._error_response(error, context, scope)(scope, receive, send_with_id)

    def _error_response(self, error: Exception, context: RequestContext, scope: Scope) -> Response:
        return error_response(error, context, context.error_body or self._find_error_body(scope["path"]))

    def _finish(self, context: RequestContext, method: str, scope: Scope) -> None:
        seconds = self._clock() - context.started
        route = getattr(scope.get("route"), "path", None)
        level = logging.DEBUG if route in _QUIET_PATHS else logging.INFO
        is_logged = logger.isEnabledFor(level)
        fields = _fields(context, method, route, scope.get("client"), seconds) if is_logged or context.trace.ids else {}
        if context.task is not None:
            code, exemplar = context.status or 500, context.trace.exemplar
            self._metrics.request_done(context.task, context.model, code, seconds, exemplar)
        if context.account.name:
            self._metrics.key_done(context.account.name, context.status or 500, context.tokens or 0)
        if is_logged:
            logger.log(level, "request", extra=fields)
        if context.trace.ids:
            context.trace.end({"request_id": context.request_id, **fields})


def _fields(
    context: RequestContext, method: str, route: str | None, client: tuple[str, int] | None, seconds: float
) -> dict[str, Any]:
    """The fields of the access log: never a text, never a secret."""
    fields = {
        "method": method,
        "route": route,
        "client": client[0] if client else None,
        "key": context.account.name or None,
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


def error_response(error: Exception, context: RequestContext, body: ErrorBody | None = None) -> Response:
    """Our errors by their code, the router's by their status, all others as an internal error without details.

    `body` is the shape of a protocol's errors.
    """
    ours = as_service_error(error)
    context.code = ours.code
    response = error_answer(ours, context.request_id, body)
    if isinstance(error, HTTPException):
        response.headers.update(error.headers or {})
    return response


def as_service_error(error: Exception) -> ServiceError:
    """The error that a client receives. One that is neither ours nor the router's is logged."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, HTTPException):
        return from_http_exception(error)
    logger.error("internal error", exc_info=error)
    return ServiceError("internal error; the log has more under this request_id")
