"""The HTTP protocol with a fake transport and fake timers: limits, time-outs, pipelining, closing."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import pairwise
from typing import Any, cast

import pytest
import uvicorn
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.server import http_protocol
from service.server.http_protocol import (
    CONTINUE,
    LINGER_S,
    MAX_PIPELINED,
    MIN_IDLE_S,
    RESERVED_CONNECTIONS,
    ConnectionLimits,
    HttpProtocol,
    ResponseWriter,
)
from service.settings import Server
from tests.contract.fakes import FakeSubmit, Service, running
from tests.support.malformed import malformed

BODY = b'{"inputs": "a"}'
LIMITS = Server(
    max_header_bytes=1024,
    max_body_bytes=2048,
    header_timeout_s=20,
    body_timeout_s=30,
    send_timeout_s=60,
    keep_alive_s=75,
)


@dataclass
class Timer:
    seconds: float
    callback: Callable[[], None]
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass
class FakeLoop:
    """A loop with real tasks and with timers that the test fires."""

    timers: list[Timer] = field(default_factory=list)

    now: float = 0.0

    def time(self) -> float:
        return self.now

    def create_task(self, coroutine: Any, **kwargs: Any) -> Any:
        return asyncio.get_running_loop().create_task(coroutine, **kwargs)

    def create_future(self) -> Any:
        return asyncio.get_running_loop().create_future()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(seconds, callback))
        return self.timers[-1]

    @property
    def running(self) -> list[float]:
        return [timer.seconds for timer in self.timers if not timer.is_cancelled]

    def fire(self) -> None:
        """Fires the only running timer."""
        (timer,) = [timer for timer in self.timers if not timer.is_cancelled]
        self.timers.remove(timer)
        timer.callback()


class FakeTransport:
    """Records the written bytes."""

    def __init__(self) -> None:
        self.written = b""
        self.num_packets = 0
        self.is_open = True
        self.was_aborted = False
        self.can_end = False
        self.has_ended = False

    def get_extra_info(self, name: str) -> None:
        return None

    def write(self, data: bytes) -> None:
        self.written += data
        self.num_packets += 1

    def close(self) -> None:
        self.is_open = False

    def abort(self) -> None:
        self.is_open = False
        self.was_aborted = True

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return self.can_end

    def write_eof(self) -> None:
        self.has_ended = True

    def is_closing(self) -> bool:
        return not self.is_open

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


@dataclass
class Peer:
    """One connection, seen from its client."""

    connection: HttpProtocol
    transport: FakeTransport
    loop: FakeLoop

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self.connection.data_received(part)

    async def answered(self, count: int = 1) -> list[tuple[int, str]]:
        """Status and error code of each response, once `count` of them have been written."""
        for _ in range(200):
            if self.transport.written.count(b"HTTP/1.1 ") >= count:
                break
            await asyncio.sleep(0)
        parts = self.transport.written.split(b"HTTP/1.1 ")[1:]
        codes = [re.search(rb'"code":"(\w+)"', part) for part in parts]
        return [(int(part[:3]), code[1].decode() if code else "") for part, code in zip(parts, codes, strict=True)]

    async def wait_out(self) -> None:
        """Waits until the connection is closed; fires each timer that runs."""
        while self.transport.is_open:
            for _ in range(20):
                await asyncio.sleep(0)
            waiting = [timer for timer in self.loop.timers if not timer.is_cancelled]
            if waiting:
                self.loop.timers.remove(waiting[0])
                waiting[0].callback()
            else:
                await asyncio.gather(*self.connection.tasks)

    def lose(self) -> None:
        self.transport.is_open = False
        self.connection.connection_lost(None)


@dataclass
class App:
    """The application, and the limits that its connections share."""

    service: Service
    connection_limits: ConnectionLimits
    state: ServerState
    config: uvicorn.Config

    def connect(self, now: float = 0.0) -> Peer:
        loop, transport = FakeLoop(), FakeTransport()
        loop.now = now
        connection = HttpProtocol(
            config=self.config,
            server_state=self.state,
            app_state={},
            _loop=cast(Any, loop),
            connection_limits=self.connection_limits,
        )
        connection.connection_made(cast(Any, transport))
        return Peer(connection, transport, loop)

    def refused(self, reason: str) -> float | None:
        name = "erlangshen_connections_refused_total"
        return self.service.metrics.registry.get_sample_value(name, {"reason": reason})

    @property
    def num_connections(self) -> float | None:
        return self.service.metrics.registry.get_sample_value("erlangshen_connections")


@asynccontextmanager
async def serving(
    submit: FakeSubmit | None = None, max_connections: int = 100, limits: Server = LIMITS
) -> AsyncIterator[App]:
    async with running(submit=submit, settings=limits) as service:
        config = uvicorn.Config(
            service.app, ws="none", lifespan="off", log_config=None, timeout_keep_alive=round(LIMITS.keep_alive_s)
        )
        connection_limits = ConnectionLimits(limits, service.metrics, max_connections, service.memory)
        yield App(service, connection_limits, ServerState(), config)


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    async with serving() as found:
        yield found.connect()


def post(*headers: bytes, body: bytes = BODY, announced: int | None = None) -> bytes:
    length = b"Content-Length: %d" % (len(body) if announced is None else announced)
    return b"\r\n".join([b"POST /v1/embed HTTP/1.1", b"Host: x", length, *headers, b"", body])


def chunked(*pieces: bytes) -> bytes:
    head = b"POST /v1/embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(pieces)


CHUNK = b"%x\r\n%s\r\n" % (len(BODY), BODY)
GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


def test_the_installed_uvicorn_is_the_checked_version() -> None:
    """After an upgrade, compare the overridden methods with uvicorn's, then name the new versions in the module."""
    named = " ".join((http_protocol.__doc__ or "").split())
    for package in ("uvicorn", "httptools"):
        assert f"{package} {version(package)}" in named
    internals = ("_start_asgi_task", "_should_upgrade", "_unset_keepalive_if_required", "on_response_complete")
    assert [name for name in internals if not hasattr(HttpToolsProtocol, name)] == []


async def test_an_answered_connection_has_only_the_keep_alive_timer(peer: Peer) -> None:
    assert peer.loop.running == [20]
    peer.send(post())
    assert peer.loop.running == []
    assert await peer.answered() == [(200, "")]
    assert peer.loop.running == [75]
    peer.send(post())
    assert await peer.answered(2) == [(200, ""), (200, "")]
    assert peer.transport.is_open


async def test_a_response_is_one_packet_with_or_without_body(peer: Peer) -> None:
    peer.send(post())
    assert await peer.answered() == [(200, "")]
    assert peer.transport.num_packets == 1
    peer.send(GET.replace(b"GET", b"HEAD"))
    assert await peer.answered(2) == [(200, ""), (200, "")]
    assert peer.transport.num_packets == 2


async def test_expect_100_continue_is_answered_with_100(peer: Peer) -> None:
    peer.send(post(b"Expect: 100-continue", body=b"", announced=len(BODY)))
    assert await peer.answered() == [(100, "")]
    peer.send(BODY)
    assert await peer.answered(2) == [(100, ""), (200, "")]


async def test_a_disconnect_cancels_the_jobs_of_the_client() -> None:
    submit = FakeSubmit(gate=asyncio.Event())
    async with serving(submit) as found:
        peer = found.connect()
        peer.send(post())
        await submit.arrived.wait()
        peer.lose()
        await asyncio.gather(*peer.connection.tasks)
        assert submit.num_cancelled == 1
        assert peer.transport.written == b""


async def test_reading_resumes_after_a_large_body_so_that_a_disconnect_is_seen() -> None:
    submit, body = FakeSubmit(gate=asyncio.Event()), b'{"inputs": "a"%s}' % (b" " * HIGH_WATER_LIMIT)
    async with serving(submit, limits=Server(max_body_bytes=2 * HIGH_WATER_LIMIT)) as found:
        peer = found.connect()
        peer.send(post(body=body)[:-1])
        assert peer.connection.flow.read_paused
        peer.send(body[-1:])
        assert not peer.connection.flow.read_paused
        await submit.arrived.wait()
        peer.lose()
        await asyncio.gather(*peer.connection.tasks)
        assert submit.num_cancelled == 1


async def test_a_request_byte_by_byte_has_one_header_and_one_body_timer(peer: Peer) -> None:
    peer.send(*(bytes([byte]) for byte in post()))
    assert await peer.answered() == [(200, "")]
    assert [timer.seconds for timer in peer.loop.timers] == [20, 30, 75]


async def test_a_silent_connection_is_closed_without_a_response(peer: Peer) -> None:
    peer.loop.fire()
    assert (peer.transport.is_open, peer.transport.written) == (False, b"")


async def test_an_incomplete_head_is_answered_with_408(peer: Peer) -> None:
    peer.send(b"POST /v1/embed HT")
    assert peer.loop.running == [20]
    peer.loop.fire()
    assert await peer.answered() == [(408, "request_timeout")]
    assert b"connection: close\r\n" in peer.transport.written
    assert not peer.transport.is_open


async def test_a_second_head_has_the_same_timeout_as_the_first(peer: Peer) -> None:
    peer.send(post())
    await peer.answered()
    peer.send(b"POST")
    assert peer.loop.running == [20]
    peer.loop.fire()
    assert await peer.answered(2) == [(200, ""), (408, "request_timeout")]


async def test_an_idle_connection_is_closed_after_keep_alive_s(peer: Peer) -> None:
    peer.send(post())
    await peer.answered()
    peer.loop.fire()
    assert not peer.transport.is_open
    assert len(await peer.answered()) == 1


@pytest.mark.parametrize("start", [post(announced=100), post(announced=100, body=b""), chunked(CHUNK)])
async def test_an_incomplete_body_is_answered_with_408(peer: Peer, start: bytes) -> None:
    peer.send(start)
    await asyncio.sleep(0)
    peer.loop.fire()
    assert await peer.answered() == [(408, "request_timeout")]
    assert b"connection: close\r\n" in peer.transport.written
    assert not peer.transport.is_open


async def test_the_body_timer_of_a_pipelined_request_starts_with_its_turn() -> None:
    gate = asyncio.Event()
    async with serving(FakeSubmit(gate=gate)) as found:
        peer = found.connect()
        peer.send(post(), post(announced=100))
        assert peer.loop.running == []
        gate.set()
        await peer.answered()
        await asyncio.sleep(0)
        assert peer.loop.running == [30]
        peer.loop.fire()
        assert await peer.answered(2) == [(200, ""), (408, "request_timeout")]


async def test_a_refused_body_is_read_to_its_end_and_the_connection_reused(peer: Peer) -> None:
    peer.send(post(announced=10_000))
    assert await peer.answered() == [(413, "body_too_large")]
    peer.send(b"x" * 4000, b"x" * 4000)
    assert peer.loop.running == [20]
    peer.send(b"x" * (2000 - len(BODY)) + post())
    assert await peer.answered(2) == [(413, "body_too_large"), (200, "")]


async def test_a_refused_body_that_does_not_end_is_closed_by_the_timer(peer: Peer) -> None:
    peer.send(chunked(b"1000\r\n" + b"x" * 4096))
    assert await peer.answered() == [(413, "body_too_large")]
    peer.send(b"\r\n1000\r\n")
    peer.loop.fire()
    assert not peer.transport.is_open
    assert len(await peer.answered(2)) == 1


def padded(num_bytes: int) -> bytes:
    """A request whose path and headers have `num_bytes` bytes."""
    rest = len("/v1/embed" + "Host: x\r\nContent-Length: 2\r\nX: \r\n")
    return b"POST /v1/embed HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nX: %s\r\n\r\n{}" % (b"a" * (num_bytes - rest))


async def test_headers_of_the_limit_are_read_and_one_byte_more_is_refused(peer: Peer) -> None:
    peer.send(padded(1024))
    assert await peer.answered() == [(422, "invalid_request")]
    peer.send(padded(1025))
    assert await peer.answered(2) == [(422, "invalid_request"), (431, "headers_too_large")]
    assert not peer.transport.is_open


@pytest.mark.parametrize(
    "endless",
    [
        [b"GET /", *[b"a" * 100] * 12],
        [b"GET / HTTP/1.1\r\nX: ", *[b"a" * 100] * 12],
        [b"GET / HTTP/1.1\r\n", *[b"X: a\r\n" * 20] * 12],
        [b"GET / HTTP/1.1\r\n", *[b"a" * 100] * 12],
        [b"\r\n" * 50] * 12,
    ],
    ids=["path", "value", "many", "name", "nothing"],
)
async def test_an_endless_head_is_answered_with_431(peer: Peer, endless: list[bytes]) -> None:
    peer.send(*endless)
    assert await peer.answered() == [(431, "headers_too_large")]
    assert not peer.transport.is_open


@pytest.mark.parametrize("tail", [b"0\r\nX: ", b"5;"], ids=["trailers", "extension"])
async def test_endless_trailers_or_chunk_extensions_are_answered_with_431(peer: Peer, tail: bytes) -> None:
    peer.send(chunked(CHUNK), tail, *[b"a" * 100] * 12)
    assert await peer.answered() == [(431, "headers_too_large")]
    assert not peer.transport.is_open


async def test_bytes_that_are_not_http_are_answered_with_400(peer: Peer) -> None:
    peer.send(b"\x16\x03\x01\x02\x00")
    assert await peer.answered() == [(400, "malformed_request")]
    assert re.search(rb"\r\nx-request-id: [0-9a-f]{32}\r\n", peer.transport.written)
    assert peer.transport.written.endswith(b"}")


async def test_a_refused_client_that_still_sends_gets_time_to_read_the_response(peer: Peer) -> None:
    peer.transport.can_end = True
    peer.send(b"GET /" + b"a" * 2000)
    assert await peer.answered() == [(431, "headers_too_large")]
    assert (peer.transport.has_ended, peer.transport.is_open) == (True, True)
    peer.send(*[b"a" * 1000] * 3, b" HTTP/1.1\r\n\r\n")
    assert len(await peer.answered(2)) == 1
    assert peer.loop.running == [2]
    peer.loop.fire()
    assert not peer.transport.is_open


@pytest.mark.parametrize("pieces", [[b"-1\r\n"], [CHUNK, b"zz\r\n"], [CHUNK, b"f" * 20, b"\r\n"]])
async def test_a_malformed_chunk_is_answered_with_400(peer: Peer, pieces: list[bytes]) -> None:
    peer.send(chunked(), *pieces)
    assert await peer.answered() == [(400, "malformed_request")]
    assert not peer.transport.is_open


async def test_complete_requests_before_a_malformed_one_are_answered() -> None:
    gate = asyncio.Event()
    async with serving(FakeSubmit(gate=gate)) as found:
        peer = found.connect()
        peer.send(post() * 2 + b"\x00", b"\x00", post())
        gate.set()
        assert await peer.answered(3) == [(200, ""), (200, "")]
        assert not peer.transport.is_open
        assert found.refused("malformed_request") == 1


async def test_the_number_of_pipelined_requests_is_limited(peer: Peer) -> None:
    peer.send(GET * (MAX_PIPELINED + 50))
    assert await peer.answered(100) == [(200, "")] * (MAX_PIPELINED + 1)
    assert not peer.transport.is_open


UPGRADE = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk")


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_an_upgrade_is_ignored_and_its_request_answered(peer: Peer, size: int) -> None:
    whole = post(*UPGRADE) + chunked(CHUNK, b"0\r\n\r\n").replace(b"Host: x", b"\r\n".join((b"Host: x", *UPGRADE)))
    peer.send(*(whole[at : at + size] for at in range(0, len(whole), size)))
    assert await peer.answered(2) == [(200, ""), (200, "")]
    peer.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"))
    assert await peer.answered(3) == [(200, ""), (200, ""), (200, "")]


async def test_connect_is_refused(peer: Peer) -> None:
    peer.send(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n")
    assert await peer.answered() == [(400, "malformed_request")]


async def test_at_the_limit_the_longest_idle_connection_is_closed() -> None:
    async with serving(max_connections=2) as found:
        first, second = found.connect(), found.connect()
        second.send(post())
        assert await second.answered() == [(200, "")]
        third = found.connect(now=MIN_IDLE_S)
        assert [peer.transport.is_open for peer in (first, second, third)] == [False, True, True]
        third.send(post())
        assert await third.answered() == [(200, "")]
        fourth = found.connect(now=2 * MIN_IDLE_S)
        assert [peer.transport.is_open for peer in (second, third, fourth)] == [False, True, True]


async def test_a_connection_that_was_just_accepted_is_not_closed_for_another() -> None:
    async with serving(max_connections=1) as found:
        first, second = found.connect(), found.connect(now=MIN_IDLE_S / 2)
        first.send(post())
        second.send(post())
        assert await first.answered() == [(200, "")]
        assert await second.answered() == [(503, "too_many_connections")]


async def test_at_the_limit_of_busy_connections_only_probes_are_answered() -> None:
    async with serving(max_connections=1) as found:
        busy = found.connect()
        busy.send(post()[:-1])
        client = found.connect()
        client.send(post())
        assert await client.answered() == [(503, "too_many_connections")]
        assert b"retry-after: 5\r\n" in client.transport.written
        assert not client.transport.is_open
        probe = found.connect()
        probe.send(b"GET /livez?x HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await probe.answered() == [(200, "")]
        assert b"connection: close\r\n" in probe.transport.written.lower()
        busy.send(post()[-1:])
        assert await busy.answered() == [(200, "")]
        assert (found.refused("too_many_connections"), found.num_connections) == (1, 3)
        for peer in (busy, client, probe):
            peer.lose()
        assert found.num_connections == 0
        again = found.connect()
        again.send(post())
        assert await again.answered() == [(200, "")]


async def test_above_the_reserve_a_connection_is_refused_before_its_request() -> None:
    async with serving(max_connections=1) as found:
        for _ in range(1 + RESERVED_CONNECTIONS):
            found.connect().send(b"G")
        refused = found.connect()
        assert await refused.answered() == [(503, "too_many_connections")]
        assert not refused.transport.is_open


@pytest.mark.parametrize("hosts", [[], [b"a", b"a"], [b"a b"], [b"x@y"], [b"a/c"], [b"a:b"]])
async def test_a_missing_duplicate_or_invalid_host_is_refused(peer: Peer, hosts: list[bytes]) -> None:
    lines = b"".join(b"Host: %s\r\n" % host for host in hosts)
    peer.send(b"GET /livez HTTP/1.1\r\n" + lines + b"\r\n")
    assert await peer.answered() == [(400, "malformed_request")]


@pytest.mark.parametrize("host", [b"", b"x", b"x:80", b"127.0.0.1:8000", b"[::1]:8000", b"a-b.example.com"])
async def test_every_form_of_host_is_accepted(peer: Peer, host: bytes) -> None:
    peer.send(b"GET /livez HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
    assert await peer.answered() == [(200, "")]


@pytest.mark.parametrize(
    "host", [b"localhost", b"x:80", b"127.0.0.1:8000", b"[::1]:8000", b"A.example:80", b"b.localhost"]
)
async def test_local_and_allowed_names_are_accepted_where_hosts_are_checked(host: bytes) -> None:
    async with serving() as found:
        found.connection_limits.allowed_hosts = frozenset({"a.example"})
        peer = found.connect()
        peer.send(b"GET /livez HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
        assert await peer.answered() == [(200, "")]


@pytest.mark.parametrize("host", [b"evil.example", b"evil.example:8000", b"evil.example.", b"127.0.0.1.evil.example"])
async def test_other_domain_names_are_refused_where_hosts_are_checked(host: bytes) -> None:
    async with serving() as found:
        found.connection_limits.allowed_hosts = frozenset({"a.example"})
        peer = found.connect()
        peer.send(b"GET /livez HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
        assert await peer.answered() == [(403, "host_not_allowed")]


async def test_trailers_are_not_read_as_headers(peer: Peer) -> None:
    body = b'{"inputs": "a"}'
    peer.send(chunked(b"%x\r\n%s\r\n0\r\nX-Request-ID: forged\r\n\r\n" % (len(body), body)))
    assert await peer.answered() == [(200, "")]
    assert b"forged" not in peer.transport.written


async def test_a_last_response_waits_for_a_client_that_is_still_sending(peer: Peer) -> None:
    peer.transport.can_end = True
    peer.send(b"POST /v1/embed HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 999999\r\n\r\n" + b"x" * 9)
    assert await peer.answered() == [(413, "body_too_large")]
    assert (peer.transport.is_open, peer.transport.has_ended) == (True, True)
    assert peer.loop.running == [LINGER_S]
    peer.send(b"x" * 100)
    assert peer.loop.running == [LINGER_S], "restarted by the last byte"
    peer.loop.now = LIMITS.body_timeout_s - 0.5
    peer.send(b"x" * 100)
    assert peer.loop.running == [0.5], "limited by body_timeout_s"
    peer.loop.fire()
    assert not peer.transport.is_open


async def test_a_client_that_does_not_read_is_aborted() -> None:
    async with serving() as found:
        peer = found.connect()
        peer.send(post())
        await peer.answered()
        peer.connection.pause_writing()
        assert peer.loop.running == [75, 60]
        peer.connection.resume_writing()
        assert peer.loop.running == [75]
        peer.loop.fire()  # keep-alive has ended: closing, but the response is not sent yet
        assert peer.loop.running == [60]
        peer.loop.fire()
        assert peer.transport.was_aborted
        assert found.refused("slow_reader") == 1


BULK = b"POST /v1/bulk HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
LINE = b"%x\r\n%s\r\n" % (1024, b"x" * 1023 + b"\n")


async def settle() -> None:
    """Lets the tasks of a request go on until they wait for the client."""
    for _ in range(100):
        await asyncio.sleep(0)


async def test_a_body_in_lines_has_no_timer_of_its_own(peer: Peer) -> None:
    peer.send(BULK + LINE)
    await settle()
    assert b"malformed_body" in peer.transport.written
    assert peer.loop.running == []
    peer.send(LINE)
    assert peer.loop.running == []


async def test_a_body_in_lines_may_be_of_any_length() -> None:
    async with serving() as found:
        peer = found.connect()
        peer.send(BULK)
        for _ in range(50):
            peer.send(LINE)
            await settle()
            assert found.service.memory.used < 3 * len(LINE)
        peer.send(b"0\r\n\r\n")
        await settle()
        assert peer.transport.written.count(b"malformed_body") == 50
        assert peer.transport.written.endswith(b"0\r\n\r\n")
        assert peer.loop.running == [75]
        peer.send(post())
        assert (await peer.answered(2))[1] == (200, "")
        assert peer.loop.running == [75]


async def test_a_client_that_sends_a_body_in_lines_may_read_afterwards() -> None:
    async with serving() as found:
        peer = found.connect()
        peer.send(BULK + LINE)
        await settle()
        peer.connection.pause_writing()
        assert peer.loop.running == [60]
        peer.loop.now = 50
        peer.send(LINE)
        peer.loop.now = 60
        peer.loop.fire()
        assert peer.loop.running[-1] == 50, "from the last bytes on"
        assert not peer.transport.was_aborted
        peer.loop.now = 110
        peer.loop.fire()
        assert peer.transport.was_aborted


async def test_a_body_in_lines_that_ends_early_is_read_to_its_end() -> None:
    async with serving() as found:
        peer = found.connect()
        peer.transport.can_end = True
        peer.send(BULK + LINE)
        await settle()
        found.service.stopping.set()
        await settle()
        assert b'{"start_line":2,"error":' in peer.transport.written
        assert (peer.transport.is_open, peer.connection.is_busy) == (True, True)
        peer.send(LINE)
        peer.loop.fire()
        assert not peer.transport.is_open


async def test_a_disconnect_cancels_the_lines_of_the_client() -> None:
    async with serving(submit := FakeSubmit(gate=asyncio.Event())) as found:
        peer = found.connect()
        line = b'{"url": "/v1/embed", "body": {"inputs": "a"}}\n'
        peer.send(BULK + b"%x\r\n%s\r\n" % (len(line), line))
        await submit.arrived.wait()
        peer.lose()
        await asyncio.gather(*found.state.tasks)
        assert (submit.num_cancelled, peer.loop.running, found.service.memory.used) == (1, [], 0)


async def test_a_closing_connection_that_does_not_read_is_aborted(peer: Peer) -> None:
    peer.send(post(b"Connection: close"))
    await peer.answered()
    assert peer.loop.running == [60]
    peer.loop.fire()
    assert peer.transport.was_aborted


async def test_a_lost_connection_leaves_no_timer_and_no_task() -> None:
    async with serving(submit := FakeSubmit(gate=asyncio.Event())) as found:
        peer = found.connect()
        peer.send(post() + post())
        await submit.arrived.wait()
        peer.lose()
        await asyncio.gather(*found.state.tasks)
        assert (submit.num_cancelled, len(submit.calls), peer.loop.running) == (1, 1, [])


async def test_while_closing_every_response_is_the_last_of_its_connection() -> None:
    gate = asyncio.Event()
    async with serving(FakeSubmit(gate=gate)) as found:
        running_one, idle = found.connect(), found.connect()
        running_one.send(post() + post())
        found.connection_limits.is_closing = True
        running_one.connection.close_after_answer()
        idle.connection.close_after_answer()
        gate.set()
        assert await running_one.answered(2) == [(200, ""), (200, "")]
        assert running_one.transport.written.count(b"connection: close\r\n") == 1
        assert not running_one.transport.is_open
        assert idle.transport.is_open
        idle.send(post())
        assert await idle.answered() == [(200, "")]
        assert b"connection: close\r\n" in idle.transport.written
        assert not idle.transport.is_open


async def test_malformed_requests_never_leave_a_connection_open() -> None:
    seen = set()
    async with serving() as found:
        for seed in range(600):
            rng, peer = random.Random(seed), found.connect()
            data = malformed(rng)
            cuts = sorted(rng.choices(range(len(data)), k=3))
            for start, end in pairwise([0, *cuts, len(data)]):
                if peer.transport.is_open:
                    peer.send(data[start:end])
                await asyncio.sleep(0)
            await peer.wait_out()
            peer.lose()
            seen |= {status for status, _ in await peer.answered(0)}
        await asyncio.gather(*found.state.tasks)
        assert found.num_connections == 0
    assert {200, 400, 404, 408, 431} <= seen <= {200, 400, 404, 405, 408, 413, 415, 422, 431}


@dataclass
class Wire:
    """Records the written packets."""

    packets: list[bytes] = field(default_factory=list)
    is_open: bool = True

    def write(self, data: bytes) -> None:
        assert self.is_open
        self.packets.append(data)

    def close(self) -> None:
        self.is_open = False

    def is_closing(self) -> bool:
        return not self.is_open


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def reply(wire: Wire) -> ResponseWriter:
    return ResponseWriter(cast(Any, wire), wire.close)


def test_the_head_is_sent_with_the_first_part_of_the_body(wire: Wire, reply: ResponseWriter) -> None:
    reply.write(b"head ")
    assert wire.packets == []
    reply.write(b"body")
    assert wire.packets == [b"head body"]
    reply.write(b", more")
    reply.finish()
    assert wire.packets == [b"head body", b", more"]


def test_an_empty_body_flushes_the_head(wire: Wire, reply: ResponseWriter) -> None:
    reply.write(b"head")
    reply.write(b"")
    assert wire.packets == [b"head"]


def test_a_response_without_a_body_is_sent_once_at_finish(wire: Wire, reply: ResponseWriter) -> None:
    reply.write(b"head")
    reply.finish()
    reply.finish()
    assert wire.packets == [b"head"]


def test_100_continue_is_sent_immediately(wire: Wire, reply: ResponseWriter) -> None:
    reply.write(CONTINUE)
    assert wire.packets == [CONTINUE]
    reply.write(b"head ")
    reply.write(b"body")
    assert wire.packets == [CONTINUE, b"head body"]


def test_close_flushes_an_unfinished_response(wire: Wire, reply: ResponseWriter) -> None:
    reply.write(b"head")
    assert not reply.is_closing()
    reply.close()
    assert wire.packets == [b"head"]
    assert reply.is_closing()
