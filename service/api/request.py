"""Reading one request: its headers, once, into options; its body and JSON; and whether its client is still there."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NoReturn, TypeVar, cast

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service.api.accounts import ANYONE, Account
from service.api.problems import MAX_LISTED, from_validation_error, invalid, path_of
from service.domain import RANKS, Priority, RequestOptions, Timing
from service.errors import (
    BodyTooLarge,
    FieldError,
    InvalidRequest,
    MalformedBody,
    Unavailable,
    UnsupportedEncoding,
)
from service.settings import Server
from service.tracing.trace import NO_TRACE, Trace

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
FieldPath = tuple[str | int, ...]

CONTEXT_KEY = "erlangshen.context"
TIMEOUT_HEADER = "X-Request-Timeout-Ms"
PRIORITY_HEADER = "X-Request-Priority"
BODY_ERROR = "erlangshen.body_error"
"""In the state of a request's scope: set by the connection when the rest of the body will not come, to the reason."""
GONE = "erlangshen.gone"
"""In the state, too: a future that the connection resolves when the client has disconnected."""
MAX_SEARCHED = 100_000
"""Values (about) of a body that is searched for a lone surrogate: more than a request within the limits holds."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
STARTING_RETRY_S = 5.0


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

    def encoded(self, inputs: int, tokens: int) -> None:
        """The texts were tokenised: from now on the tokens count for the account, whatever becomes of the request."""
        self.inputs = inputs
        self.tokens = tokens
        self.account.spend(tokens)


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
        return replace(options, deadline=deadline, priority=rank)


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


async def read_body(request: Request, headers: Headers, max_bytes: int) -> bytes:
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
    chunks, size, is_complete = [], 0, False
    while not is_complete:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > max_bytes:
            _refuse_size(max_bytes)
        is_complete = not message.get("more_body", False)
        if not is_complete and (error := request.scope.get("state", {}).get(BODY_ERROR)):
            raise error
    return b"".join(chunks)


def _refuse_size(max_bytes: int) -> NoReturn:
    raise BodyTooLarge(f"the body is larger than {max_bytes} bytes; send fewer inputs in one request")


def parse(body: bytes, model: type[M], limits: Server) -> M:
    """The body as a wire model.

    Raises:
        MalformedBody: not UTF-8, not JSON, or nested too deep.
        InvalidRequest: names every field that is wrong.
    """
    value = parse_json(body)
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    try:
        return model.model_validate(value, context=limits)
    except ValidationError as error:
        raise from_validation_error(error, model) from None


def parse_json(body: bytes) -> Any:
    """The value of a body.

    Raises:
        MalformedBody: not UTF-8, not JSON, or nested too deep.
        InvalidRequest: JSON of at most MAX_SEARCHED values that holds a lone surrogate, which is not text.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        _refuse_surrogates(body)
        raise MalformedBody(f"the body is not JSON: {_reason(body, error)}") from None


def _reason(body: bytes, error: orjson.JSONDecodeError) -> str:
    if not body.strip():
        return "it is empty"
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as wrong:
        return f"byte {wrong.start} is not UTF-8"
    return f"{error.msg} at line {error.lineno}, column {error.colno}"


def _refuse_surrogates(body: bytes) -> None:
    """orjson calls "\\ud800" malformed; it is well-formed JSON, and the error should name the field that holds it."""
    num_values = sum(map(body.count, (b",", b"[", b"{")))
    if num_values > MAX_SEARCHED or not _SURROGATE.search(body):
        return
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return
    broken = islice(_surrogates(value), MAX_LISTED)
    found = [FieldError(path, "holds a lone surrogate, which is no character") for path in broken]
    if found:
        raise invalid(found)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _surrogates(value: Any) -> Iterator[str]:
    """Paths of the strings that UTF-8 cannot encode."""
    for path, one in _values(value):
        if isinstance(one, str) and _is_broken(one):
            yield path_of(path) or "body"


def _values(value: Any) -> Iterator[tuple[FieldPath, Any]]:
    """Every value in a JSON value with its path, in order; for a name that UTF-8 cannot encode, the name.

    Without recursion: a hostile body is deeply nested.
    """
    open_ones: list[Iterator[tuple[FieldPath, Any]]] = [iter([((), value)])]
    while open_ones:
        for path, one in open_ones[-1]:
            yield path, one
            if isinstance(one, list | dict):
                open_ones.append(_parts(path, one))
                break
        else:
            open_ones.pop()


def _parts(path: FieldPath, whole: list[Any] | dict[str, Any]) -> Iterator[tuple[FieldPath, Any]]:
    if isinstance(whole, list):
        return (((*path, index), part) for index, part in enumerate(whole))
    return (((*path, name), name if _is_broken(name) else part) for name, part in whole.items())


def _is_broken(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


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
