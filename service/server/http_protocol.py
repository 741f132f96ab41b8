"""uvicorn's HTTP protocol with limits: on time, on bytes, on pipelined requests, and on how long a drain may take.

A connection waits for one thing at a time: a head, a body, or, between two requests, the next head; each has a time
limit. A body that is read in parts of any number (`BodyStream`) has them for its parts, in its reader. A body that
breaks off is reported to the route that reads it (`request.read_body`); everything else that is
wrong with a connection is answered here.

This file alone uses internals of uvicorn: `HttpToolsProtocol` with `_start_asgi_task`, `_should_upgrade`,
`_unset_keepalive_if_required`, `RequestResponseCycle` and `STATUS_LINE`. Checked with uvicorn 0.54.0 and httptools
0.9.0; tests/unit/server/test_http_protocol.py fails when they change. A reverse proxy enforces most of these limits,
too, but the service may be reached without one.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.api.memory import SMALL_BYTES, MemoryBudget, memory_full
from service.api.problems import problem
from service.api.request import BODY_ERROR, GONE, STREAM
from service.errors import (
    HeadersTooLarge,
    HostNotAllowed,
    MalformedRequest,
    RequestTimeout,
    ServiceError,
    TooManyConnections,
)
from service.logs import new_request_id
from service.metrics import Metrics
from service.settings import Server

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""Not the head of a response: the client waits for it before it sends its body."""


class ResponseWriter:
    """Stands in for the transport of one response, and sends its head together with the start of its body.

    uvicorn writes one after the other, and uvloop sends each write at once: two system calls, which are the largest
    cost of a small request, two packets, and a client that wakes up twice. Call `finish` when there is no more to
    write.
    """

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self._close = close
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
        """Sends a head without a body, as of a response to HEAD."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.finish()
        self._close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


logger = logging.getLogger("service.access")

MAX_PIPELINED = 32
"""Requests that a connection may send ahead of its responses: each takes a hundred times its bytes in memory."""
FULL_RETRY_S = 5.0
LINGER_S = 2.0
"""Time for a client that is still sending to read its response and to stop, from the last byte that it sent."""
MIN_IDLE_S = 1.0
"""A younger idle connection is not closed to make room: its request may have arrived, and not been read yet."""
STALLED_S = 1.0
"""When memory is short, a large request that has sent nothing for so long is refused to make room."""
READ_BYTES = 262_144
"""What uvloop reads at once: at most as much is waiting of pipelined requests, as reading is paused behind it."""
RESERVED_CONNECTIONS = 32
"""Connections above the limit that may ask for a probe or for metrics, and for nothing else."""
RESERVED_PATHS = frozenset({b"/livez", b"/readyz", b"/metrics"})
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]*)?")
_IPV4 = re.compile(r"[0-9.]+")
FRAME = len(b": \r\n")
"""Bytes of a header line besides its name and value."""

Awaited = Literal["head", "body"]


@dataclass(slots=True)
class ConnectionLimits:
    """What all connections of one server share. Once it `is_closing`, every response is the last on its connection.

    `idle` holds the connections that wait for the first byte of a request, the longest idle one first, and the loop's
    time since which they do; `receiving` those with a part of a large request, the longest silent one first.
    """

    limits: Server
    metrics: Metrics
    max_connections: int
    memory: MemoryBudget
    allowed_hosts: frozenset[str] | None = None
    """Domain names that Host may have; None for any."""
    is_closing: bool = False
    idle: dict[HttpProtocol, float] = field(default_factory=dict)
    receiving: dict[HttpProtocol, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.memory.reclaim = self._refuse_stalled

    def _refuse_stalled(self) -> bool:
        """Refuses the large request that has been silent longest, if it has been for STALLED_S."""
        connection, since = next(iter(self.receiving.items()), (None, 0.0))
        return connection is not None and connection.refuse_stalled(since)


class HttpProtocol(HttpToolsProtocol):
    """`timeout_keep_alive_task`, which uvicorn uses between two requests, times whatever the connection waits for."""

    def __init__(self, *args: Any, connection_limits: ConnectionLimits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shared = connection_limits
        self._limits = connection_limits.limits
        self._awaited: Awaited | None = None
        self._running: RequestResponseCycle | None = None
        self._writer: ResponseWriter | None = None
        self._gone: asyncio.Future[None] | None = None
        self._num_pending = 0
        """Bytes read that have not completed a head or a piece of a body: the parser keeps them."""
        self._num_held = 0
        """Bytes read since the connection was idle: what the memory budget counts for its requests."""
        self._num_unsent = 0
        self._is_incomplete = False
        self._has_head = False
        """Header lines that come from now on are trailers."""
        self._is_streaming = False
        """The body of the current request is read in parts."""
        self._received_at = 0.0
        """Of a body that is read in parts: the loop's time of its last bytes."""
        self._is_reserved = False
        """Above the limit of connections: for RESERVED_PATHS only."""
        self._linger_until = 0.0
        self._sending: asyncio.TimerHandle | None = None

    @property
    def is_busy(self) -> bool:
        """Whether bytes of a response have not left yet, or the client of a stream is still to read them, or the first
        request of a new connection may be on its way."""
        is_new = self._running is None and self.loop.time() - self._shared.idle.get(self, 0.0) < MIN_IDLE_S
        is_needed = self._is_streaming and self._linger_until > 0.0
        return is_new or is_needed or bool(self.transport.get_write_buffer_size())

    # opening and closing

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._shared.metrics.connection_opened()
        self._make_room()
        above_limit = len(self.connections) - self._shared.max_connections
        self._is_reserved = above_limit > 0
        if above_limit > RESERVED_CONNECTIONS:
            self._refuse(_too_many_connections())
        else:
            self._await("head", self._limits.header_timeout_s, self._head_is_late)
            self._shared.idle[self] = self.loop.time()

    def _make_room(self) -> None:
        """At the limit the longest idle connection is closed: unused connections must not shut out new clients."""
        if len(self.connections) > self._shared.max_connections and self._shared.idle:
            oldest, since = next(iter(self._shared.idle.items()))
            if self.loop.time() - since >= MIN_IDLE_S:
                oldest._close()
                self._shared.idle.pop(oldest, None)
                self.connections.discard(oldest)  # counts no longer, though it is closed in the next turn only

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._shared.idle.pop(self, None)
        if self._running is not None:  # uvicorn notifies the latest request only; others may be ahead of it
            self._running.disconnected = True
            self._running.message_event.set()
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)
        self._give_back(self._num_held)
        self._count_unsent(0)
        self._shared.metrics.connection_closed()
        self._unset_keepalive_if_required()
        self._stop_sending_clock()

    def close_after_answer(self) -> None:
        """The current response asks the client to use another connection for its next request."""
        if self.cycle is not None:
            self.cycle.keep_alive = False

    # a body that is read in parts: `BodyStream`

    def begin_stream(self) -> None:
        self._is_streaming = True
        self._received_at = self.loop.time()
        self._await_next()
        self.took()

    def took(self) -> None:
        unread = len(self._running.body) if self._running is not None else 0
        self._give_back(max(0, self._num_held - unread))

    def end_stream(self) -> None:
        if self._running is not None:
            self._running.keep_alive = False

    # reading

    def data_received(self, data: bytes) -> None:
        if self.parser is _IGNORE:
            self._rearm_linger()
            return
        self._shared.idle.pop(self, None)
        if self._is_streaming:  # what is not read of it is little: reading stops there
            self._received_at = self.loop.time()
            self._shared.memory.add(len(data))
        elif not self._shared.memory.take(len(data), self._num_held):
            self._refuse(memory_full())
            return
        self._num_held += len(data)
        self._num_pending += len(data)
        self._is_incomplete = True
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            ours = error.__context__  # raised by a callback
            self._refuse(ours if isinstance(ours, ServiceError) else MalformedRequest("this is not HTTP/1.1"))
        else:
            if not self._is_incomplete:
                self._num_pending = 0
            elif self._num_pending > self._limits.max_header_bytes:
                self._refuse(self._too_large())
                return
            self._await_next()
            self._note_receiving()

    def _note_receiving(self) -> None:
        if self._num_held > SMALL_BYTES:
            self._shared.receiving.pop(self, None)
            if self._awaited:
                self._shared.receiving[self] = self.loop.time()

    def refuse_stalled(self, since: float) -> bool:
        """Refuses the request that is arriving, if nothing of it has come for STALLED_S."""
        if self.loop.time() - since < STALLED_S:
            return False
        self._refuse(memory_full())
        return True

    def _give_back(self, num_bytes: int) -> None:
        """Gives bytes back to the memory budget."""
        self._shared.memory.give(num_bytes)
        self._num_held -= num_bytes
        self._shared.receiving.pop(self, None)

    def _count_unsent(self, num_bytes: int) -> None:
        self._shared.memory.add(num_bytes - self._num_unsent)
        self._num_unsent = num_bytes

    def on_message_begin(self) -> None:
        self._has_head = False
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Trailers are ignored (RFC 9110, section 6.5.1): merged into the headers, they could name a key or a
        client."""
        if not self._has_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_incomplete = False
        self._has_head = True
        if self._num_pending > self._limits.max_header_bytes and self._is_too_large():
            raise self._too_large()
        if len(self.pipeline) >= MAX_PIPELINED:
            raise MalformedRequest("too many requests are sent ahead of their answers")
        self._check_host()
        if self._is_reserved and self.url.partition(b"?")[0] not in RESERVED_PATHS:
            raise _too_many_connections()
        super().on_headers_complete()
        if self._shared.is_closing or self._is_reserved:
            self.close_after_answer()

    def _check_host(self) -> None:
        """RFC 9112, section 3.2: one valid Host, which HTTP/1.0 may leave out."""
        hosts = [value for name, value in self.headers if name == b"host"]
        if not hosts and self.parser.get_http_version() == "1.0":
            return
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
            raise MalformedRequest("the Host header is missing, repeated or not valid")
        if self._shared.allowed_hosts is not None:
            self._check_host_name(hosts[0].decode().lower())

    def _check_host_name(self, host: str) -> None:
        """A name that public DNS can point at this machine has a dot, and is no address."""
        name = host.partition(":")[0].rstrip(".")
        is_public = "." in name and not _IPV4.fullmatch(name) and not name.endswith(".localhost")
        if is_public and name not in (self._shared.allowed_hosts or ()):
            raise HostNotAllowed("Host names another server; allow the name with --allowed-host NAME, or use API keys")

    def on_body(self, body: bytes) -> None:
        self._is_incomplete = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if not self.pipeline:  # a large body has paused reading, and with it the notice of a disconnect
            self.flow.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        self._is_streaming = False
        cycle.scope["state"][STREAM] = self
        cycle.scope["state"][GONE] = self._gone = self.loop.create_future()
        cycle.transport = self._writer = ResponseWriter(self.transport, self._close_after_response)  # type: ignore[assignment]
        super()._start_asgi_task(cycle, app)

    def _should_upgrade(self) -> bool:
        """True for every upgrade: uvicorn then leaves the request alone until `_decline_upgrade` parses it again."""
        return True

    def _decline_upgrade(self, rest: bytes) -> None:
        """Continues in HTTP/1.1, as RFC 9110, section 7.8 allows: parses the head again without its upgrade.

        Java's HttpClient asks for h2c with every request; the parser would take the body for another protocol.
        """
        if self.scope["method"] == "CONNECT":
            self._refuse(MalformedRequest("this server is no proxy"))
            return
        first = f"{self.scope['method']} ".encode() + self.url + f" HTTP/{self.scope['http_version']}\r\n".encode()
        kept = (name + b": " + value + b"\r\n" for name, value in self.headers if name != b"upgrade")
        self.data_received(b"".join((first, *kept, b"\r\n", rest)))

    def _is_too_large(self) -> bool:
        """Whether the head that is complete now is above the limit; checked only where the bytes read with it are."""
        size = sum(len(name) + len(value) + FRAME for name, value in self.headers)
        return len(self.url) + size > self._limits.max_header_bytes

    def _too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(f"the headers are larger than {self._limits.max_header_bytes} bytes")

    # time limits

    def _await_next(self) -> None:
        """After each read: starts or stops the clock for what is awaited now."""
        if self.parser is _IGNORE:
            return
        if self.cycle is None or self.cycle.response_complete:
            self._await("head", self._limits.header_timeout_s, self._head_is_late)
        elif (
            self.cycle.more_body and not self.pipeline and not self._is_streaming
        ):  # else reading is paused on this side
            self._await("body", self._limits.body_timeout_s, self._body_is_late)
        else:
            self._awaited = None
            self._unset_keepalive_if_required()

    def _await(self, what: Awaited, seconds: float, late: Callable[[], None]) -> None:
        """A running clock goes on: a client that sends a byte now and then gains no time."""
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

    # writing

    def on_response_complete(self) -> None:
        assert self._writer is not None, "it is made with the request"
        self._writer.finish()
        if self.parser is _IGNORE and self._linger_until:
            self.server_state.total_requests += 1
            return
        super().on_response_complete()
        self._awaited = None
        if self.transport.is_closing():
            self._start_sending_clock()
        elif not self.cycle.response_complete:  # the next request is here already
            self._give_back(max(0, self._num_held - READ_BYTES))
            self._await_next()
        else:
            self._give_back(self._num_held)
            self._shared.idle[self] = self.loop.time()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._count_unsent(self.transport.get_write_buffer_size())
        self._start_sending_clock()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._count_unsent(0)
        self._stop_sending_clock()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def _refuse(self, error: ServiceError) -> None:
        """Stops reading. Complete requests are answered first; a body that breaks off is reported to its reader."""
        if self.parser is _IGNORE:
            return
        self._shared.metrics.connection_refused(error.code)
        self.parser = _IGNORE
        self._give_back(self._num_held)
        if self.cycle is None or self.cycle.response_complete:
            if self.cycle is None or not self.cycle.more_body:  # else it was refused before its body came
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

    def _close_after_response(self) -> None:
        """The response was the last: lingers where the client is still sending its request."""
        is_refused, self.parser = self.parser is _IGNORE, _IGNORE
        if self._running is not None and self._running.more_body:
            self.flow.resume_reading()
            self._linger(is_sending=not is_refused)
        else:
            self.transport.close()

    def _linger(self, *, is_sending: bool = False) -> None:
        """Closes later: a connection that is closed while the client sends is reset, and the response lost (RFC 9112,
        section 9.6). Reads on, and ignores what it reads, until the client stops or the time for a body is over."""
        is_full = len(self.connections) > self._shared.max_connections + RESERVED_CONNECTIONS
        can_write_eof = self.transport.can_write_eof()  # TLS cannot be closed for writing alone
        if is_full or not (is_sending or can_write_eof):
            self._close()
            return
        self._linger_until = self.loop.time() + self._limits.body_timeout_s
        if can_write_eof:
            self.transport.write_eof()
        self._rearm_linger()

    def _rearm_linger(self) -> None:
        self._unset_keepalive_if_required()
        left_s = max(0.0, self._linger_until - self.loop.time())
        self.timeout_keep_alive_task = self.loop.call_later(min(LINGER_S, left_s), self._close)

    def _close(self) -> None:
        self.transport.close()
        self._start_sending_clock()

    def _start_sending_clock(self) -> None:
        """A connection closes once everything is sent, which is never if the client does not read: hence a clock."""
        if self._sending is None:
            self._sending = self.loop.call_later(self._limits.send_timeout_s, self._reader_is_late)

    def _stop_sending_clock(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _reader_is_late(self) -> None:
        """A client that is still sending a body in parts may read its response afterwards."""
        left_s = self._received_at + self._limits.send_timeout_s - self.loop.time() if self._is_streaming else 0.0
        if left_s > 0.0:
            self._sending = self.loop.call_later(left_s, self._reader_is_late)
            return
        self._shared.metrics.connection_refused("slow_reader")
        self.transport.abort()


def _too_many_connections() -> TooManyConnections:
    return TooManyConnections("too many connections are open", retry_after_s=FULL_RETRY_S)


class _IgnoringParser:
    """Stands in for the parser: incoming bytes are ignored."""

    def feed_data(self, data: bytes) -> None:
        pass


_IGNORE: Any = _IgnoringParser()
