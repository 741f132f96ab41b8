"""Requests in lines: answers a line that names a path of this server and a body, as a file of OpenAI's Batch API does.

A line passes through the endpoint of its path as a request does: the same validation, limits, memory, charges, metrics
and errors. It differs where a client would: it has the lowest priority, and where a request is refused for now (429,
503) it waits and tries again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from starlette.requests import Request
from starlette.responses import Response

from service import logs
from service.api.accounts import Account
from service.api.auth import INFER
from service.api.dispatch import Endpoint, Endpoints
from service.api.field_types import Wire
from service.api.json_body import Body, is_quick, parse_json, text_memory, validate
from service.api.middleware import as_service_error
from service.api.request import CONTEXT_KEY, Headers, RequestContext
from service.api.state import ServiceState
from service.domain import RANKS, RequestOptions
from service.errors import (
    DeadlineUnreachable,
    InvalidRequest,
    MalformedBody,
    MemoryFull,
    QueueFull,
    ServiceError,
    Unavailable,
)
from service.settings import Server
from service.tracing import trace

MAX_WAIT_S: Final = 2.0
"""Until a line that was refused for now tries again, at most."""
CONCURRENCY_WAIT_S: Final = 0.05
_OF_LINE: Final = 16
"""JSON values of a line besides those of its body."""


class LineRequest(Wire):
    """One line. `method` is there because files of OpenAI's Batch API have it."""

    url: str
    body: dict[str, Any]
    custom_id: Any = None
    method: Literal["POST"] = "POST"


@dataclass(frozen=True, slots=True)
class LineReply:
    """The response to a line: JSON, or an error. `custom_id` is what the line has as such, any JSON value."""

    custom_id: Any
    body: bytes = b""
    status: int = 200
    error: ServiceError | None = None
    num_tokens: int = 0
    request_id: str = ""


class Lines:
    """Answers lines in process. `check_key` raises Unauthorized or Forbidden once a key may not infer any more."""

    def __init__(
        self,
        endpoints: Endpoints,
        state: ServiceState,
        limits: Server,
        check_key: Callable[[Account], None] = lambda account: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        found = ((path, methods.get("POST")) for path, methods in endpoints.items())
        self.endpoints: Mapping[str, Endpoint] = {path: each for path, each in found if each and _is_open(path, each)}
        self._state = state
        self._limits = limits
        self._check_key = check_key
        self._clock = clock
        self._max_values = _OF_LINE + max((each.max_values for each in self.endpoints.values()), default=0)

    async def answer(self, data: Body, account: Account, request_id: str) -> LineReply:
        """The reply to a line, once there is room for it; one of an invalid line has its error.

        It counts towards the limits of its account as a request does, and waits while the account is at one of them. A
        caller that is cancelled cancels its jobs.

        Raises:
            Unauthorized, Forbidden: the key was revoked.
            Unavailable: the service stops, and the line has not been started.
        """
        tokens = logs.request_id.set(request_id), trace.current.set(trace.NO_TRACE)
        try:
            await self._enter(account)
            try:
                return await self._answer(data, account, request_id)
            finally:
                account.leave()
        finally:
            logs.request_id.reset(tokens[0])
            trace.current.reset(tokens[1])

    async def refuse(self, error: ServiceError, num_bytes: int, account: Account, request_id: str) -> LineReply:
        """The reply to a line that was not kept, of so many bytes; it is charged. Raises what `answer` raises."""
        await self._enter(account)
        try:
            RequestContext(request_id, 0.0, account=account).received(num_bytes)
        finally:
            account.leave()
        return LineReply(None, status=error.status, error=error, request_id=request_id)

    async def _enter(self, account: Account) -> None:
        self._check_key(account)
        while refusal := account.refusal():
            await self._wait(CONCURRENCY_WAIT_S if refusal.reason == "concurrency" else refusal.wait_s)
            self._check_key(account)
        account.enter()

    async def _wait(self, seconds: float) -> None:
        """Raises Unavailable once the service stops."""
        try:
            async with asyncio.timeout(seconds):
                await self._state.stopping.wait()
        except TimeoutError:
            return
        raise Unavailable("the service is stopping")

    async def _answer(self, data: Body, account: Account, request_id: str) -> LineReply:
        num_paid = 0
        while True:
            context = RequestContext(request_id, time.perf_counter(), account=account, num_paid=num_paid)
            reply = await self._attempt(data, context)
            if reply.error is None or not _may_pass(reply.error):
                self._count(context, reply)
                return reply
            num_paid = context.num_paid
            await self._wait(min(MAX_WAIT_S, reply.error.retry_after_s or MAX_WAIT_S))
            self._check_key(account)

    async def _attempt(self, data: Body, context: RequestContext) -> LineReply:
        context.received(len(data))
        reply = partial(LineReply, request_id=context.request_id)
        quick, custom_id = is_quick(data), None
        try:
            with nullcontext() if quick else self._state.memory.reserved(text_memory(data)):
                value = await self._parse(data, context.account, quick=quick)
                custom_id = value.get("custom_id")
                line = validate(value, LineRequest, self._limits)
                response = await self._respond(line, len(data), context, quick=quick)
        except Exception as error:  # noqa: BLE001 - the outermost handler of a line, as the middleware of a request
            ours = _bare(as_service_error(error))
            return reply(custom_id, status=ours.status, error=ours, num_tokens=context.tokens or 0)
        return reply(custom_id, bytes(response.body), response.status_code, num_tokens=context.tokens or 0)

    async def _parse(self, data: Body, account: Account, *, quick: bool) -> dict[str, Any]:
        parse = partial(_parse_object, data, self._max_values)
        if quick:
            return parse()
        options = RequestOptions(None, RANKS["bulk"], account.name, account.permissions.weight)
        return await self._state.pipeline.threads.run(options, parse)

    def _find(self, url: str) -> Endpoint:
        if endpoint := self.endpoints.get(url):
            return endpoint
        native = ", ".join(path for path, each in self.endpoints.items() if not each.offers[0].protocol.has_prefix)
        raise InvalidRequest.of("url", f"is no path that lines can name; those of this service are {native}")

    async def _respond(self, line: LineRequest, num_bytes: int, context: RequestContext, *, quick: bool) -> Response:
        endpoint = self._find(line.url)
        request = Request({**_SCOPE, "path": line.url, CONTEXT_KEY: context})
        headers = Headers(timeout_ms=self._limits.max_timeout_ms, priority="bulk")
        with endpoint.in_progress():
            exchange = endpoint.begin(request, context, self._clock(), headers)
            response = await endpoint.respond(exchange, line.body, num_bytes, is_quick=quick)
        if response.media_type != "application/json":
            raise InvalidRequest.of("body", f"is answered with {response.media_type}; a line has room for JSON only")
        return response

    def _count(self, context: RequestContext, reply: LineReply) -> None:
        metrics, seconds = self._state.metrics, time.perf_counter() - context.started
        if context.task is not None:
            metrics.request_done(context.task, context.model, reply.status, seconds)
        if context.account.name:
            metrics.key_done(context.account.name, reply.status, reply.num_tokens)


_SCOPE: Final[dict[str, Any]] = {
    "type": "http",
    "method": "POST",
    "headers": (),
    "query_string": b"",
    "path_params": {},
}


def _is_open(path: str, endpoint: Endpoint) -> bool:
    """Whether a path answers a task, and is whole: one with parameters names a model, which the body can do."""
    calls = [offer.call for offer in endpoint.offers]
    has_bodies = all(isinstance(call.body, type) for call in calls)
    return "{" not in path and has_bodies and calls[0].task is not None and calls[0].scopes == INFER


def _may_pass(error: ServiceError) -> bool:
    """Whether the line is computed later: all refusals, but no loss that the line may have caused itself."""
    return isinstance(error, QueueFull | DeadlineUnreachable | MemoryFull) or type(error) is Unavailable


def _bare(error: ServiceError) -> ServiceError:
    """The error without its traceback, which would keep the line in memory until a garbage collection."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


def _parse_object(data: Body, max_values: int) -> dict[str, Any]:
    if not data or data.isspace():
        raise MalformedBody("the line is blank")
    value = parse_json(data, max_values)
    if not isinstance(value, dict):
        raise InvalidRequest("the line must be a JSON object")
    return value
