"""What may refuse a request before it is understood: readiness, size, JSON, deadline; and who has gone away.

Knows no protocol: every front reads its body and waits for its answer through here.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine, Iterator
from itertools import islice
from typing import Any, NoReturn, TypeVar

import orjson
from starlette.requests import ClientDisconnect, Request

from service.api.problems import MAX_LISTED, invalid, path_of
from service.domain import RANKS, Priority
from service.errors import BodyTooLarge, FieldError, InvalidRequest, MalformedBody, Unavailable, UnsupportedEncoding
from service.settings import Server

T = TypeVar("T")
FieldPath = tuple[str | int, ...]
TIMEOUT_HEADER = "X-Request-Timeout-Ms"
PRIORITY_HEADER = "X-Request-Priority"
_TIMEOUT = TIMEOUT_HEADER.lower().encode()
_PRIORITY = PRIORITY_HEADER.lower().encode()
BODY_ERROR = "erlangshen.body_error"
"""In the state of a request's scope: the connection's word that the rest of the body will not come, and why."""
GONE = "erlangshen.gone"
"""There, too: a future that is done when the client has gone."""
MAX_SEARCHED = 100_000
"""Values (about) of a body that is searched for a lone surrogate: more than a request within the limits holds."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
STARTING_RETRY_S = 5.0


def require_ready(ready: Callable[[], str | None]) -> None:
    """`ready` gives the reason why not, or None."""
    if reason := ready():
        raise Unavailable(f"not ready: {reason}", retry_after_s=STARTING_RETRY_S)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body, whatever its content type says.

    Raises:
        BodyTooLarge: announced or counted above `max_bytes`; reading stops there.
        UnsupportedEncoding: compressed.
        RequestTimeout, MalformedRequest: the rest of it does not come, or is not HTTP.
    """
    if (_header(request, b"content-encoding") or "identity").lower() != "identity":
        raise UnsupportedEncoding("the body is compressed; send it as it is")
    announced = _header(request, b"content-length") or ""
    if announced.isdecimal() and int(announced) > max_bytes:
        _refuse_size(max_bytes)
    chunks, size, is_whole = [], 0, False
    while not is_whole:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > max_bytes:
            _refuse_size(max_bytes)
        is_whole = not message.get("more_body", False)
        if not is_whole and (error := request.scope.get("state", {}).get(BODY_ERROR)):
            raise error
    return b"".join(chunks)


def _header(request: Request, name: bytes) -> str | None:
    """The first of this name, which is in small letters. Most are not there, which costs starlette's `headers` most."""
    for known, value in request.scope["headers"]:
        if known == name:
            return str(value, "latin-1")
    return None


def _refuse_size(max_bytes: int) -> NoReturn:
    raise BodyTooLarge(f"the body is larger than {max_bytes} bytes; send fewer inputs in one request")


def parse_json(body: bytes) -> Any:
    """What a body holds.

    Raises:
        MalformedBody: not UTF-8, not JSON, or nested too deep.
        InvalidRequest: JSON of no more than MAX_SEARCHED values that holds a lone surrogate, which is no text.
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
    """orjson calls "\\ud800" malformed; it is well-formed JSON, and the caller wants to know the field it is in."""
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
    """Paths of the strings that UTF-8 cannot write."""
    for path, one in _values(value):
        if isinstance(one, str) and _is_broken(one):
            yield path_of(path) or "body"


def _values(value: Any) -> Iterator[tuple[FieldPath, Any]]:
    """Everything in a JSON value with its path, in order; for a broken name the name itself, in its value's place.

    Without recursion: a hostile body is deep.
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


def seconds_allowed(request: Request, in_body_ms: int | None, limits: Server) -> float:
    """How long this request may take: the shorter of `timeout_ms` and the header, else the default."""
    asked = [ms for ms in (in_body_ms, _header_ms(request, limits)) if ms is not None]
    return min(asked, default=limits.default_timeout_ms) / 1000


def seconds_at_most(request: Request, limits: Server) -> float:
    """What is known of it before the body is read, which may ask for less."""
    return (_header_ms(request, limits) or limits.max_timeout_ms) / 1000


def _header_ms(request: Request, limits: Server) -> int | None:
    text = _header(request, _TIMEOUT)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 12 and 1 <= int(text) <= limits.max_timeout_ms):
        raise InvalidRequest.of(TIMEOUT_HEADER, f"must be a whole number from 1 to {limits.max_timeout_ms}")
    return int(text)


def priority_asked(request: Request, in_body: Priority | None) -> Priority:
    """`bulk` where the body or the header says so: a proxy can make a request wait, and not make it go first."""
    in_header = _header(request, _PRIORITY)
    if in_header not in (None, *RANKS):
        raise InvalidRequest.of(PRIORITY_HEADER, f"must be {' or '.join(RANKS)}")
    return "bulk" if "bulk" in (in_body, in_header) else "interactive"


async def unless_gone(request: Request, answer: Coroutine[Any, Any, T]) -> T:
    """Waits for the answer and cancels it when the client goes away first (ClientDisconnect).

    As asyncio.timeout does it: the answer is computed in this task. Our own connection tells who goes; behind another,
    a task of its own watches for it, which costs more.
    """
    waiting = asyncio.current_task()
    assert waiting is not None, "a request is served in a task"
    is_over = has_gone = False

    def cancel(_: object) -> None:
        nonlocal has_gone
        if not is_over:
            has_gone = True
            waiting.cancel()

    told = request.scope.get("state", {}).get(GONE)
    leaving: asyncio.Future[None] = told or asyncio.ensure_future(_leave(request))
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
    """Returns when the client has gone; the body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
