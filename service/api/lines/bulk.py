"""`POST /v1/bulk`: requests in lines and replies in lines, in the same order, at the lowest priority.

Lines are read, computed and answered at the same time, a bounded number of them: a client that does not read its
replies stops the reading of its request, and the memory does not depend on the number of lines. A request that ends
early says in its last line with which line to go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import orjson
from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api.auth import BULK
from service.api.lines.answers import LineReply, Lines
from service.api.lines.outbox import Outbox, Spool
from service.api.lines.reader import LineReader, stream_of
from service.api.openapi import ERRORS, described_elsewhere
from service.api.problems import problem
from service.api.request import GONE, Headers, PlainRoute, RequestContext, context_of, not_ready, unless_gone
from service.api.state import ServiceState
from service.errors import BodyTooLarge, InvalidRequest, RateLimited, ServiceError, Unavailable, UnsupportedEncoding
from service.metric_labels import LineResult
from service.settings import Server

logger = logging.getLogger("service.access")

MEDIA_TYPE: Final = "application/x-ndjson"
START_LINE: Final = "start_line"
MAX_START_LINE: Final = 10**12
STREAMS_RETRY_S: Final = 5.0


class BulkRoutes:
    """The route of bulk requests, and how many of each account are in progress."""

    def __init__(self, state: ServiceState, limits: Server, lines: Lines) -> None:
        self._state = state
        self._limits = limits
        self._lines = lines
        self._num_open: Counter[str] = Counter()

    def routes(self) -> list[PlainRoute]:
        return [PlainRoute(BULK, self.post, methods=["POST"])]

    async def post(self, request: Request) -> Response:
        """Raises Unavailable, UnsupportedEncoding, InvalidRequest or RateLimited before anything is read."""
        if reason := self._state.why_not_ready():
            raise not_ready(reason)
        if Headers.read(request, self._limits).content_encoding != "identity":
            raise UnsupportedEncoding("the body is compressed; send it as it is")
        first, account = read_start_line(request), context_of(request).account
        if self._num_open[account.name] >= (most := self._limits.max_bulk_streams):
            detail = f"{most} bulk requests of this key are in progress, as many as it may have"
            raise RateLimited(detail, retry_after_s=STREAMS_RETRY_S)
        stream = BulkStream(self._state, self._limits, self._lines, request, first)
        return _Reply(partial(self._run, stream, account.name))

    async def _run(self, stream: BulkStream, account: str, send: Send) -> None:
        self._num_open[account] += 1
        try:
            await stream.run(send)
        finally:
            self._num_open[account] -= 1
            if not self._num_open[account]:
                del self._num_open[account]


class _Reply(Response):
    """A response that is written while the request is read."""

    def __init__(self, run: Callable[[Send], Awaitable[None]]) -> None:
        super().__init__(media_type=MEDIA_TYPE)
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._run(send)


def read_start_line(request: Request) -> int:
    """The number of the first line to answer. Raises InvalidRequest."""
    if unknown := request.query_params.keys() - {START_LINE}:
        raise InvalidRequest.of(min(unknown)[:64], f"unknown parameter; the known one is {START_LINE}")
    text = request.query_params.get(START_LINE, "1")
    if not (text.isascii() and text.isdecimal() and len(text) < 16 and 1 <= int(text) <= MAX_START_LINE):
        raise InvalidRequest.of(START_LINE, f"must be the number of a line, from 1 to {MAX_START_LINE}")
    return int(text)


@dataclass(frozen=True, slots=True)
class _Line:
    """A line in work. Its task returns the line of its reply."""

    number: int
    task: asyncio.Task[bytes]


class BulkStream:
    """One bulk request. `run` it once.

    The lines in work and their replies take at most as many bytes as the largest line, or are one line and its reply.
    """

    def __init__(self, state: ServiceState, limits: Server, lines: Lines, request: Request, first: int) -> None:
        self._state = state
        self._limits = limits
        self._lines = lines
        self._request = request
        self._context: RequestContext = context_of(request)
        self._reader = LineReader(request, limits.max_body_bytes, limits.body_timeout_s)
        self._next = first
        """Number of the first line that is not answered."""
        self._work: deque[_Line] = deque()
        self._change = asyncio.Event()
        """Set, and replaced, when a line comes or goes."""
        self._num_held = 0
        """Bytes of lines in work, and of replies that wait for one before them."""
        self._num_running = 0
        self._reply_bytes = 0
        """What a reply is expected to take."""
        self._window = 1
        self._counts: Counter[str] = Counter()

    async def run(self, send: Send) -> None:
        """Raises ClientDisconnect."""
        if connection := stream_of(self._request):
            connection.begin_stream()
        reason = "disconnected"
        self._state.metrics.bulk_began()
        try:
            error = await self._run(_Sender(send))
            reason = "complete" if error is None else error.code
        finally:
            self._state.metrics.bulk_ended(reason)
            logger.info("bulk", extra={"reason": reason, "next_line": self._next, **self._counts})

    async def _run(self, sender: _Sender) -> ServiceError | None:
        outbox = Outbox(sender.send, Spool(self._limits.bulk_spool_bytes), lambda: not self._reader.is_complete)
        reading = asyncio.create_task(self._read())
        reading.add_done_callback(lambda task: self._notify())
        stopping = asyncio.create_task(self._state.stopping.wait())
        stopping.add_done_callback(lambda task: reading.cancel())
        answering = self._answer(reading, outbox, sender)
        try:
            # Behind another server than ours, reading and sending notice that the client has gone.
            is_watched = GONE in self._request.scope.get("state", {})
            return await (unless_gone(self._request, answering) if is_watched else answering)
        finally:
            stopping.cancel()
            await self._cancel(reading)
            await outbox.close()
            self._hold(-self._num_held)

    async def _cancel(self, reading: asyncio.Task[None]) -> None:
        """Reads and computes no more."""
        tasks = [reading, *(line.task for line in self._work)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # reading

    async def _read(self) -> None:
        """Raises what `LineReader.lines` raises."""
        async for number, data in self._reader.lines(self._next):
            while not self._has_room(len(data or b"")):
                await self._change.wait()
            self._hold(len(data or b""))
            self._num_running += 1
            self._work.append(_Line(number, asyncio.create_task(self._compute(number, data))))
            self._notify()

    def _has_room(self, num_bytes: int) -> bool:
        if not self._work:
            return True
        concurrency = self._context.account.permissions.concurrency
        window = min(self._window, concurrency) if concurrency else self._window
        expected = self._num_held + num_bytes + (self._num_running + 1) * self._reply_bytes
        return len(self._work) < window and expected <= self._limits.max_body_bytes

    def _hold(self, num_bytes: int) -> None:
        self._num_held += num_bytes
        self._state.memory.add(num_bytes)

    def _notify(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    # computing

    async def _compute(self, number: int, data: bytes | None) -> bytes:
        """The line of the reply.

        Small replies do not tell how large those of later lines are, and many lines are computed at a time. A reply for
        which there is no room before its turn is dropped, and computed again in its turn.
        """
        try:
            reply = await self._reply(number, data)
            text = reply_line(number, reply)
            if self._num_held + len(text) > self._limits.max_body_bytes and self._work[0].number != number:
                del reply, text  # while it waits
                while self._work[0].number != number:
                    await self._change.wait()
                reply = await self._reply(number, data)
                text = reply_line(number, reply)
        finally:
            self._num_running -= 1
            self._hold(-len(data or b""))
        self._hold(len(text))
        self._reply_bytes = max(len(text), self._reply_bytes - self._reply_bytes // 64)
        self._window = min(self._window + 1, self._limits.bulk_window)
        result: LineResult = "failed" if reply.error else "answered"
        self._counts.update({result: 1, "tokens": reply.num_tokens})
        self._state.metrics.bulk_answered(result)
        return text

    async def _reply(self, number: int, data: bytes | None) -> LineReply:
        account, request_id = self._context.account, f"{self._context.request_id}/{number}"
        if data is not None:
            return await self._lines.answer(data, account, request_id)
        limit = self._limits.max_body_bytes
        error = BodyTooLarge(f"the line is larger than {limit} bytes; send fewer inputs in one line")
        return await self._lines.refuse(error, limit, account, request_id)

    # answering

    async def _answer(self, reading: asyncio.Task[None], outbox: Outbox, sender: _Sender) -> ServiceError | None:
        """Returns the error with which the request ends early."""
        error = await self._pass_on(reading, outbox)
        await self._cancel(reading)
        await self._finish(outbox, error)
        await sender.end()
        return error

    async def _pass_on(self, reading: asyncio.Task[None], outbox: Outbox) -> ServiceError | None:
        """Passes on the replies in order. Returns the error with which the request ends early."""
        while True:
            while not self._work and not reading.done():
                await self._change.wait()
            if not self._work:
                return _error_of(reading)
            try:
                text = await self._work[0].task
                self._next = self._work.popleft().number + 1
                self._notify()
                await outbox.put(text)
            except ServiceError as error:
                return error
            self._hold(-len(text))
            self._notify()

    async def _finish(self, outbox: Outbox, error: ServiceError | None) -> None:
        """Sends the rest. Of a request that ends early it reads the rest, too: its client may read only then."""
        if error is None:
            await outbox.finish()
            return
        self._context.code = error.code
        if connection := stream_of(self._request):
            connection.end_stream()
        sending = asyncio.create_task(outbox.finish(last_line(self._next, error, self._context.request_id)))
        discarding = asyncio.create_task(self._discard())
        try:
            await sending
        finally:
            for task in (sending, discarding):
                task.cancel()
            await asyncio.gather(sending, discarding, return_exceptions=True)

    async def _discard(self) -> None:
        with suppress(ServiceError, ClientDisconnect):
            await self._reader.discard()


class _Sender:
    """The response: its head goes with the first reply."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._has_begun = False

    async def send(self, data: bytes, *, more: bool = True) -> None:
        if not self._has_begun:
            self._has_begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def end(self) -> None:
        await self.send(b"", more=False)


_HEADERS: Final = ((b"content-type", MEDIA_TYPE.encode()), (b"x-accel-buffering", b"no"))
"""nginx would keep the replies, and the client wait for them."""


def _error_of(reading: asyncio.Task[None]) -> ServiceError | None:
    """Why reading has ended; None: the body is complete. Raises what is no error for the client."""
    if reading.cancelled():
        return Unavailable("the service is stopping")
    error = reading.exception()
    if error is None or isinstance(error, ServiceError):
        return error
    raise error


def reply_line(number: int, reply: LineReply) -> bytes:
    parts = [b'{"line":%d' % number]
    if reply.custom_id is not None:
        parts += [b',"custom_id":', orjson.dumps(reply.custom_id)]
    if reply.error is None:
        parts += [b',"response":', reply.body]
    else:
        parts += [b',"error":', bytes(problem(reply.error, reply.request_id).body)]
    return b"".join([*parts, b"}\n"])


def last_line(number: int, error: ServiceError, request_id: str) -> bytes:
    """The last line of a request that ends early: the line with which to go on, and why."""
    return b'{"start_line":%d,"error":%b}\n' % (number, bytes(problem(error, request_id).body))


_EXAMPLE: Final = (
    '{"custom_id": "a", "url": "/v1/classify", "body": {"inputs": "菜很好吃", "labels": ["好评", "差评"]}}\n'
    '{"custom_id": "b", "url": "/v1/fill-mask", "body": {"inputs": "北京是中国的首[MASK]"}}\n'
)
_REPLIES: Final = (
    '{"line":1,"custom_id":"a","response":{"model":"mini","task":"classify"}}\n'
    '{"line":2,"custom_id":"b","response":{"model":"mini","task":"fill-mask"}}\n'
)


def document(router: APIRouter) -> None:
    """Adds the route to the OpenAPI document."""
    text = {"schema": {"type": "string"}}
    parameter = {
        "name": START_LINE,
        "in": "query",
        "description": "Number of the first line to answer; those before it are skipped.",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_START_LINE},
    }
    router.add_api_route(
        BULK,
        described_elsewhere,
        methods=["POST"],
        operation_id="bulk",
        summary="Many requests, one in each line",
        description="Lines of JSON with `url`, a path of this API, `body`, and optionally `custom_id`. Each has a line "
        "in the reply, in the same order, with its number and `response` or `error`. A request that ends early has a "
        "last line with the `start_line` to go on with.",
        responses={
            200: {"description": "Lines of JSON.", "content": {MEDIA_TYPE: text | {"example": _REPLIES}}},
            **{status: ERRORS[status] for status in (401, 403, 415, 422, 429, 503)},
        },
        tags=["tasks"],
        response_class=Response,
        openapi_extra={
            "requestBody": {"required": True, "content": {MEDIA_TYPE: text | {"example": _EXAMPLE}}},
            "parameters": [parameter],
        },
    )
