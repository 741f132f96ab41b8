"""Reading one request: its headers, once, into options; its body; and whether its client is still there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, TypeVar, cast

from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.accounts import ANYONE, Account
from service.domain import RANKS, Priority, RequestOptions, Timing
from service.errors import (
    BodyTooLarge,
    InvalidRequest,
    ServiceError,
    Unavailable,
    UnsupportedEncoding,
)
from service.settings import Server
from service.tracing.trace import NO_TRACE, Trace

T = TypeVar("T")

CONTEXT_KEY = "erlangshen.context"
PREFIX_KEY = "erlangshen.prefix"
"""In a request's scope: the path below which a proxy serves this server, as `/nlp`; absent where there is none."""
WITHOUT_SLASH = "erlangshen.without_slash"
"""Likewise: whether the path was the prefix alone, relative to which the links of a page would be wrong."""
TIMEOUT_HEADER = "X-Request-Timeout-Ms"
PRIORITY_HEADER = "X-Request-Priority"
BODY_ERROR = "erlangshen.body_error"
"""In the state of a request's scope: set by the connection when the rest of the body will not come, to the reason."""
GONE = "erlangshen.gone"
"""In the state, too: a future that the connection resolves when the client has disconnected."""
STREAM = "erlangshen.stream"
"""In the state: the connection, as a `BodyStream`."""
BYTES_PER_TOKEN = 1024
"""Of a body and of a reply: as many bytes are charged as one token. Only a request far from the usual pays for them."""
STARTING_RETRY_S = 5.0


class BodyStream(Protocol):
    """The connection of a request whose body is read in parts of any number, while its response is written."""

    def begin_stream(self) -> None:
        """Lifts the limits on the body as a whole: its time, and its memory. The reader has limits on each part."""
        ...

    def took(self) -> None:
        """The reader has taken what has arrived, and counts its memory from now on."""
        ...

    def end_stream(self) -> None:
        """The response ends before the body: it is the last on its connection."""
        ...


@dataclass(slots=True)
class RequestContext:
    """What is known of a request so far; `status` is 0 until a response starts, `code` is an error's."""

    request_id: str
    started: float
    trace: Trace = NO_TRACE
    account: Account = ANYONE
    task: str | None = None
    model: str | None = None
    priority: Priority | None = None
    inputs: int | None = None
    tokens: int | None = None
    timing: Timing | None = None
    status: int = 0
    code: str | None = None
    num_paid: int = 0
    """Tokens that the account was charged."""
    error_body: Callable[[ServiceError, str], Any] | None = None
    """The shape of the protocol's errors, once the protocol is known; None: that of the path."""

    def received(self, num_bytes: int) -> None:
        """The body was read: it is charged, whatever becomes of the request."""
        self._pay(num_bytes // BYTES_PER_TOKEN)

    def encoded(self, inputs: int, tokens: int) -> None:
        """Texts were tokenised: from now on the tokens count for the account, whatever becomes of the request."""
        self.inputs = inputs + (self.inputs or 0)
        self.tokens = tokens + (self.tokens or 0)
        self._pay(self.tokens)

    def replied(self, num_bytes: int) -> None:
        """The reply was made: what it has above the tokens of the request is charged, too."""
        self._pay(num_bytes // BYTES_PER_TOKEN)

    def _pay(self, tokens: int) -> None:
        """Charges the account, at least these tokens for the request as a whole."""
        if tokens > self.num_paid:
            self.account.spend(tokens - self.num_paid)
            self.num_paid = tokens


def context_of(request: Request) -> RequestContext:
    return cast("RequestContext", request.scope[CONTEXT_KEY])


class PlainRoute(Route):
    """A Starlette route that calls its endpoint without the wrapper for exceptions: RequestMiddleware handles them all.

    It leaves itself in the scope, as FastAPI's routes do: the access log shows the path of the route, not the caller's.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)  # 405
            return
        response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


class DirectRoutes:
    """The innermost middleware: answers a request by its path, without the router and FastAPI's own layers.

    The router tries one route after the other, and its layers serve dependencies and handlers of exceptions, of which
    these routes have none. What is not here goes on to the router: other paths, other methods, and an application below
    a prefix.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[PlainRoute]) -> None:
        self._app = app
        self._routes = {
            (method, route.path): route for route in routes if "{" not in route.path for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = None
        if scope["type"] == "http" and not scope.get("root_path"):
            route = self._routes.get((scope["method"], scope["path"]))
        if route is None:
            await self._app(scope, receive, send)
        else:
            await route.handle(scope, receive, send)


def not_ready(reason: str) -> Unavailable:
    return Unavailable(f"not ready: {reason}", retry_after_s=STARTING_RETRY_S)


@dataclass(frozen=True, slots=True)
class Headers:
    """The headers that the API reads, of each the first. starlette's `headers` costs most where they are absent."""

    timeout_ms: int | None = None
    priority: Priority = "interactive"
    content_encoding: str = "identity"
    content_length: int = 0

    @classmethod
    def read(cls, request: Request, limits: Server) -> Headers:
        """Raises InvalidRequest."""
        found: dict[str, Any] = {}
        for name, value in request.scope["headers"]:
            if name in _READERS and (field := _READERS[name][0]) not in found:
                found[field] = _READERS[name][1](str(value, "latin-1"), limits)
        return cls(**found)

    def options(self, account: Account, started: float, limits: Server) -> RequestOptions:
        """What is known before the body is read: the latest deadline, and the highest priority."""
        priority = account.priority(self.priority)
        timeout_ms = self.timeout_ms or limits.max_timeout_ms
        return RequestOptions(started + timeout_ms / 1000, RANKS[priority], account.name, account.permissions.weight)

    def narrow(
        self,
        options: RequestOptions,
        started: float,
        limits: Server,
        *,
        timeout_ms: int | None,
        priority: Priority | None,
    ) -> RequestOptions:
        """With what the body says: the shorter of the two time-outs, or the default without any; `bulk` in one of the
        two is enough, so that a proxy can make a request wait, and not make it go first."""
        given = [ms for ms in (timeout_ms, self.timeout_ms) if ms is not None]
        rank = options.priority if priority is None else min(options.priority, RANKS[priority])
        deadline = started + min(given, default=limits.default_timeout_ms) / 1000
        return RequestOptions(deadline, rank, options.account, options.weight)


def _timeout_ms(text: str, limits: Server) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 12 and 1 <= int(text) <= limits.max_timeout_ms):
        raise InvalidRequest.of(TIMEOUT_HEADER, f"must be a whole number from 1 to {limits.max_timeout_ms}")
    return int(text)


def _priority(text: str, limits: Server) -> str:
    if text not in RANKS:
        raise InvalidRequest.of(PRIORITY_HEADER, f"must be {' or '.join(RANKS)}")
    return text


_READERS: dict[bytes, tuple[str, Callable[[str, Server], Any]]] = {
    TIMEOUT_HEADER.lower().encode(): ("timeout_ms", _timeout_ms),
    PRIORITY_HEADER.lower().encode(): ("priority", _priority),
    b"content-encoding": ("content_encoding", lambda text, limits: text.lower() or "identity"),
    b"content-length": ("content_length", lambda text, limits: int(text) if text.isdecimal() else 0),
}


async def read_body(request: Request, headers: Headers, max_bytes: int) -> bytearray:
    """The body, whatever its content type says.

    Raises:
        BodyTooLarge: announced or counted above `max_bytes`; reading stops there.
        UnsupportedEncoding: compressed.
        RequestTimeout, MalformedRequest: the rest of it does not come, or is not HTTP.
        ClientDisconnect: the client has gone.
    """
    if headers.content_encoding != "identity":
        raise UnsupportedEncoding("the body is compressed; send it as it is")
    if headers.content_length > max_bytes:
        _refuse_size(max_bytes)
    body, is_complete = bytearray(), False
    while not is_complete:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > max_bytes:
            _refuse_size(max_bytes)
        is_complete = not message.get("more_body", False)
        if not is_complete and (error := request.scope.get("state", {}).get(BODY_ERROR)):
            body.clear()  # the error is in the scope, and its traceback would keep both until a garbage collection
            raise error
    return body


def _refuse_size(max_bytes: int) -> NoReturn:
    raise BodyTooLarge(f"the body is larger than {max_bytes} bytes; send fewer inputs in one request")


async def unless_gone(request: Request, answer: Coroutine[Any, Any, T]) -> T:
    """Awaits the answer, and cancels it when the client disconnects first (ClientDisconnect).

    The answer is computed in this task, cancelled and un-cancelled as asyncio.timeout does it. Our own connection
    signals a disconnect; behind another server a task watches for it, which costs more.
    """
    waiting = asyncio.current_task()
    assert waiting is not None, "a request is served in a task"
    is_over = has_gone = False

    def cancel(_: object) -> None:
        nonlocal has_gone
        if not is_over:
            has_gone = True
            waiting.cancel()

    signal = request.scope.get("state", {}).get(GONE)
    leaving: asyncio.Future[None] = signal or asyncio.ensure_future(_leave(request))
    leaving.add_done_callback(cancel)
    try:
        return await answer
    except asyncio.CancelledError:
        if has_gone and not waiting.uncancel():
            raise ClientDisconnect from None
        raise
    finally:
        is_over = True
        leaving.cancel()


async def _leave(request: Request) -> None:
    """Returns when the client has disconnected; the body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
