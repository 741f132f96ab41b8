"""One connection: uvicorn's, but nobody can hold it for long, fill it without bound or keep the server from leaving.

A connection waits for one thing at a time: a head, a body, or, between two requests, its next use; each has its limit
in seconds. Knows no route: what is wrong with a body is told to whoever reads it (`guards.read_body`), all else is
answered here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.api.problems import problem
from service.api.request import BODY_ERROR, GONE
from service.errors import HeadersTooLarge, MalformedRequest, RequestTimeout, ServiceError, TooManyConnections
from service.logs import new_request_id
from service.metrics import Metrics
from service.settings import Server

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""No head of a reply: the client waits for it before it sends its body."""


class ResponseWriter:
    """In the place of a transport, for one request; `finish` when there is no more to write."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        if data == CONTINUE:
            self._transport.write(data)
        elif self._head is None:
            self._head = data
        else:
            self._transport.write(self._head + data)
            self._head = b""

    def finish(self) -> None:
        """A reply to HEAD has no body."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.finish()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


logger = logging.getLogger("service.access")

MAX_PIPELINED = 32
"""Requests that one connection may send ahead of its answers: each costs a hundred times the bytes it came in."""
FULL_RETRY_S = 5.0
LINGER_S = 2.0
"""For a client that was refused to read why, and to stop sending."""
FRAME = len(b": \r\n")
"""Around the name and the value of a header."""

Awaited = Literal["head", "body"]


@dataclass(slots=True)
class ConnectionLimits:
    """What all connections of one server share; once it `is_closing`, every answer is the last on its connection."""

    limits: Server
    metrics: Metrics
    max_connections: int
    is_closing: bool = False


class HttpProtocol(HttpToolsProtocol):
    """uvicorn arms `timeout_keep_alive_task` between two requests; here it times whatever is awaited."""

    def __init__(self, *args: Any, connection_limits: ConnectionLimits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shared = connection_limits
        self._limits = connection_limits.limits
        self._awaited: Awaited | None = None
        self._running: RequestResponseCycle | None = None
        self._writer: ResponseWriter | None = None
        self._gone: asyncio.Future[None] | None = None
        self._num_pending = 0
        """Bytes of reads that nothing whole came of, no head and no piece of a body: the parser keeps them."""
        self._is_in_vain = False
        self._sending: asyncio.TimerHandle | None = None

    # the connection's life

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._shared.metrics.connections.inc()
        if len(self.connections) > self._shared.max_connections:
            self._refuse(TooManyConnections("too many connections are open", retry_after_s=FULL_RETRY_S))
        else:
            self._await("head", self._limits.header_timeout_s, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._running is not None:  # uvicorn tells the latest request only; others may be ahead of it
            self._running.disconnected = True
            self._running.message_event.set()
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)
        self._shared.metrics.connections.dec()
        self._unset_keepalive_if_required()
        self._stop_sending_clock()

    def close_after_answer(self) -> None:
        """The answer that is on its way tells the client to come back on another connection."""
        if self.cycle is not None:
            self.cycle.keep_alive = False

    # what comes in

    def data_received(self, data: bytes) -> None:
        self._num_pending += len(data)
        self._is_in_vain = True
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            ours = error.__context__  # what a callback raised
            self._refuse(ours if isinstance(ours, ServiceError) else MalformedRequest("this is not HTTP/1.1"))
        else:
            if not self._is_in_vain:
                self._num_pending = 0
            elif self._num_pending > self._limits.max_header_bytes:
                self._refuse(self._too_large())
                return
            self._await_next()

    def on_headers_complete(self) -> None:
        self._is_in_vain = False
        if self._num_pending > self._limits.max_header_bytes and self._is_too_large():
            raise self._too_large()
        if len(self.pipeline) >= MAX_PIPELINED:
            raise MalformedRequest("too many requests are sent ahead of their answers")
        super().on_headers_complete()
        if self._shared.is_closing:
            self.close_after_answer()

    def on_body(self, body: bytes) -> None:
        self._is_in_vain = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if not self.pipeline:  # a large body has paused the reading, and with it the news that the client has gone
            self.flow.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        cycle.scope["state"][GONE] = self._gone = self.loop.create_future()
        cycle.transport = self._writer = ResponseWriter(self.transport)  # type: ignore[assignment]
        super()._start_asgi_task(cycle, app)

    def _should_upgrade(self) -> bool:
        """To all upgrades: uvicorn then leaves the request alone until `_decline_upgrade` has it read again."""
        return True

    def _decline_upgrade(self, rest: bytes) -> None:
        """Goes on in HTTP/1.1, as RFC 9110, 7.8 allows: the head is read again without its wish.

        Java's HttpClient asks for h2c with every request; the parser would take the body for another protocol.
        """
        if self.scope["method"] == "CONNECT":
            self._refuse(MalformedRequest("this server is no proxy"))
            return
        first = f"{self.scope['method']} ".encode() + self.url + f" HTTP/{self.scope['http_version']}\r\n".encode()
        kept = (name + b": " + value + b"\r\n" for name, value in self.headers if name != b"upgrade")
        self.data_received(b"".join((first, *kept, b"\r\n", rest)))

    def _is_too_large(self) -> bool:
        """The head that is complete now; counted only where what was read with it is."""
        size = sum(len(name) + len(value) + FRAME for name, value in self.headers)
        return len(self.url) + size > self._limits.max_header_bytes

    def _too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(f"the headers are larger than {self._limits.max_header_bytes} bytes")

    # how long it may take

    def _await_next(self) -> None:
        """After each read: what is awaited now?"""
        if self.parser is _DEAF:
            return
        if self.cycle is None or self.cycle.response_complete:
            self._await("head", self._limits.header_timeout_s, self._head_is_late)
        elif self.cycle.more_body and not self.pipeline:  # else it is we who do not read
            self._await("body", self._limits.body_timeout_s, self._body_is_late)
        else:
            self._awaited = None
            self._unset_keepalive_if_required()

    def _await(self, what: Awaited, seconds: float, late: Callable[[], None]) -> None:
        """A clock that runs goes on: a byte now and then buys no time."""
        if self._awaited != what:
            self._awaited = what
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(seconds, late)

    def _head_is_late(self) -> None:
        if self._num_pending:
            self._refuse(RequestTimeout("the head of the request took too long"))
        else:
            self._close()

    def _body_is_late(self) -> None:
        self._refuse(RequestTimeout("the body of the request took too long"))

    # what goes out

    def on_response_complete(self) -> None:
        assert self._writer is not None, "it was made with the request"
        self._writer.finish()
        super().on_response_complete()
        self._awaited = None
        if self.transport.is_closing():
            self._start_sending_clock()
        elif not self.cycle.response_complete:  # the next request had come already
            self._await_next()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_sending_clock()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_sending_clock()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def _refuse(self, error: ServiceError) -> None:
        """Nothing more is read here. What came whole is answered first; to a broken body, its reader says why."""
        if self.parser is _DEAF:
            return
        self._shared.metrics.connections_refused.labels(error.code).inc()
        self.parser = _DEAF
        if self.cycle is None or self.cycle.response_complete:
            if self.cycle is None or not self.cycle.more_body:  # else it was refused before its body had come
                self._answer(error)
            self._linger()
            return
        self.close_after_answer()
        if self.cycle.more_body:
            self.cycle.scope["state"][BODY_ERROR] = error
            self.cycle.message_event.set()

    def _answer(self, error: ServiceError) -> None:
        request_id = new_request_id()
        logger.info("request refused", extra={"request_id": request_id, "status": error.status, "code": error.code})
        response = problem(error, request_id)
        headers = [*self.server_state.default_headers, *response.raw_headers]
        headers += [(b"x-request-id", request_id.encode()), (b"connection", b"close")]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[response.status_code] + lines + b"\r\n" + bytes(response.body))

    def _linger(self) -> None:
        """Closed while the client still sends, the connection would be reset and the answer lost."""
        self._unset_keepalive_if_required()
        if len(self.connections) <= self._shared.max_connections and self.transport.can_write_eof():
            self.transport.write_eof()
            self.timeout_keep_alive_task = self.loop.call_later(LINGER_S, self._close)
        else:
            self._close()

    def _close(self) -> None:
        self.transport.close()
        self._start_sending_clock()

    def _start_sending_clock(self) -> None:
        """A connection closes when all is sent: without a clock, never, where nobody reads."""
        if self._sending is None:
            self._sending = self.loop.call_later(self._limits.send_timeout_s, self._reader_is_late)

    def _stop_sending_clock(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _reader_is_late(self) -> None:
        self._shared.metrics.connections_refused.labels("slow_reader").inc()
        self.transport.abort()


class _Deaf:
    """In a parser's place: what comes is not read."""

    def feed_data(self, data: bytes) -> None:
        pass


_DEAF: Any = _Deaf()
