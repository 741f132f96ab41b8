"""Malformed, endless and slow requests and thousands of connections to a real server, and its shutdown."""

from __future__ import annotations

import json
import re
import resource
import select
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx
import psutil
import pytest

from tests.system.test_serve import ANSWER_S, Running, serving, until

pytestmark = pytest.mark.system

MIB = 2**20
BODY = json.dumps({"inputs": "好"}).encode()
LAST = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
"""The last request of a connection, answered with 200 if the connection was kept open."""


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving("--model", "mini", "--max-connections", "10100", "--header-timeout-s", "60") as running:
        yield running


@pytest.fixture(scope="module")
def short_timeouts() -> Iterator[Running]:
    times = ("--header-timeout-s", "1", "--body-timeout-s", "1", "--send-timeout-s", "1", "--keep-alive-s", "1")
    with serving("--model", "mini", *times, "--max-connections", "20") as running:
        yield running


@contextmanager
def connected(server: Running) -> Iterator[socket.socket]:
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port or 80), ANSWER_S) as client:
        yield client


def post(*headers: bytes, body: bytes = BODY, length: bytes | None = None) -> bytes:
    announced = b"Content-Length: %d" % len(body) if length is None else length
    return b"\r\n".join([b"POST /v1/embed HTTP/1.1", b"Host: x", announced, *headers, b"", body])


def get(path: bytes) -> bytes:
    return b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path


def read_all(client: socket.socket) -> bytes:
    """Reads until the server closes or resets the connection."""
    received = b""
    with suppress(ConnectionError):
        while part := client.recv(65536):
            received += part
    return received


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", received)]


def chunked(body: bytes) -> bytes:
    return post(length=b"Transfer-Encoding: chunked", body=body)


CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
UPGRADE = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk")

SENT = {
    "whole": (post(), [200, 200]),
    "in chunks": (chunked(CHUNKS), [200, 200]),
    "five pipelined": (post() * 5, [200] * 6),
    "garbage": (b"\x00\x01\xff garbage\r\n\r\n", [400]),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", [400]),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
    "HTTP/9.9": (b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", [400]),
    "garbage after a request": (post() + b"\x00", [200]),
    "unknown method": (b"FROB / HTTP/1.1\r\nHost: x\r\n\r\n", [400]),
    "CONNECT": (b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", [400]),
    "TRACE": (b"TRACE /livez HTTP/1.1\r\nHost: x\r\n\r\n", [405, 200]),
    "upgrade": (post(*UPGRADE), [200, 200]),
    "upgrade, in chunks": (post(*UPGRADE, length=b"Transfer-Encoding: chunked", body=CHUNKS), [200, 200]),
    "two lengths": (post(b"Content-Length: 5"), [400]),
    "length and chunks": (post(b"Transfer-Encoding: chunked"), [400]),
    "length +": (post(length=b"Content-Length: +14"), [400]),
    "length -": (post(length=b"Content-Length: -14"), [400]),
    "length in hex": (post(length=b"Content-Length: 0xe"), [400]),
    "huge length": (post(length=b"Content-Length: 99999999999999999999999"), [400]),
    "space before the colon": (post(length=b"Transfer-Encoding : chunked"), [400]),
    "unknown transfer encoding": (post(length=b"Transfer-Encoding: gzip"), [400]),
    "bad chunk": (chunked(b"-1\r\n"), [400]),
    "bare newlines": (post().replace(b"\r\n", b"\n"), [400]),
    "folded header": (post(b"X: a\r\n b"), [400]),
    "NUL in a header": (post(b"X: a\x00b"), [400]),
    "large header": (post(b"X: " + b"a" * 40_000), [431]),
    "many headers": (post(*[b"a: b"] * 10_000), [431]),
    "long path": (get(b"/" + b"a" * 40_000), [431]),
    "bytes in the path": (get(b"/\xff"), [400]),
    "invalid UTF-8 in the path": (get(b"/%ff%fe"), [404, 200]),
    "NUL in the path": (get(b"/livez%00"), [404, 200]),
    "two slashes": (get(b"//livez"), [404, 200]),
    "parent path": (get(b"/v1/../livez"), [404, 200]),
    "path traversal": (get(b"/static-offline-docs/../../../../etc/passwd"), [404, 200]),
    "path traversal, encoded": (get(b"/static-offline-docs/%2e%2e%2f%2e%2e%2f%2e%2e%2fetc/passwd"), [404, 200]),
    "path traversal, from the root": (get(b"/static-offline-docs//etc/passwd"), [404, 200]),
    "file with NUL": (get(b"/static-offline-docs/%00"), [404, 200]),
    "gzip": (post(b"Content-Encoding: gzip"), [415, 200]),
    "gzip, bomb": (post(b"Content-Encoding: gzip", body=b"\x1f\x8b\x08\x00" + b"\x00" * 1000), [415, 200]),
    "XML": (post(b"Content-Type: application/xml", body=b"<a/>"), [400, 200]),
    "no body": (post(body=b""), [400, 200]),
    "NaN": (post(body=b'{"inputs": NaN}'), [400, 200]),
    "invalid UTF-8": (post(body=b'{"inputs": "\xff"}'), [400, 200]),
    "a surrogate": (post(body=b'{"inputs": "\\ud800"}'), [422, 200]),
    "deep lists": (post(body=b"[" * MIB), [400, 200]),
    "deep objects": (post(body=b'{"a":' * 100_000), [400, 200]),
    "wide": (post(body=b'{"inputs": [' + b"0," * MIB + b"0]}"), [400, 200]),
}


@pytest.mark.parametrize("name", SENT)
def test_every_kind_of_request_has_its_status(server: Running, name: str) -> None:
    sent, expected = SENT[name]
    with connected(server) as client:
        client.sendall(sent + LAST)
        assert statuses(read_all(client)) == expected


def send_while_open(client: socket.socket, part: bytes, most: int) -> int:
    """Number of bytes sent before the server answered or closed the connection."""
    sent = 0
    with suppress(ConnectionError, TimeoutError):
        while sent < most and not select.select([client], [], [], 0)[0]:
            sent += client.send(part)
    return sent


def memory(server: Running) -> int:
    resident: int = psutil.Process(server.process.pid).memory_info().rss
    return resident


@pytest.mark.parametrize("start", [post(length=b"Content-Length: %d" % (100 * MIB), body=b""), chunked(b"")])
def test_a_body_of_100_mb_is_refused_at_its_limit(server: Running, start: bytes) -> None:
    before = memory(server)
    with connected(server) as client:
        client.sendall(start)
        sent = send_while_open(client, b"fffff\r\n%s\r\n" % (b"x" * 0xFFFFF), 100 * MIB)
        assert sent < 50 * MIB
        assert statuses(client.recv(65536)) == [413]
    assert memory(server) - before < 64 * MIB


def test_an_endless_body_is_closed_after_body_timeout_s(short_timeouts: Running) -> None:
    """The body is refused at its limit; the client may send for one more second."""
    before = memory(short_timeouts)
    with connected(short_timeouts) as client:
        client.sendall(chunked(b""))
        with suppress(ConnectionError):
            while True:  # until the server closes the connection
                client.sendall(b"fffff\r\n%s\r\n" % (b"x" * 0xFFFFF))
    assert memory(short_timeouts) - before < 64 * MIB


def drip(client: socket.socket) -> bytes:
    """Sends a byte every 0.1 s until the server answers; returns everything received."""
    with suppress(ConnectionError):
        while not select.select([client], [], [], 0.1)[0]:
            client.send(b"a")
    return read_all(client)


@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nX: ", post(length=b"Content-Length: 10000", body=b"")])
def test_a_request_sent_byte_by_byte_is_answered_with_408(short_timeouts: Running, start: bytes) -> None:
    with connected(short_timeouts) as client:
        client.sendall(start)
        assert statuses(drip(client)) == [408]


@pytest.mark.parametrize(
    ("start", "expected"), [(b"", []), (b"POST /v1", [408]), (post(body=b"{", length=b"Content-Length: 9"), [408])]
)
def test_a_client_that_stops_sending_is_disconnected(
    short_timeouts: Running, start: bytes, expected: list[int]
) -> None:
    with connected(short_timeouts) as client:
        client.sendall(start)
        assert statuses(read_all(client)) == expected


def test_a_client_that_does_not_read_its_response_is_disconnected(short_timeouts: Running) -> None:
    reason = 'erlangshen_connections_refused_total{reason="slow_reader"}'
    large = json.dumps({"inputs": ["[MASK]" * 100], "top_k": 1000}).encode()
    with connected(short_timeouts) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(post(body=large).replace(b"/v1/embed", b"/v1/fill-mask"))
        until(lambda: short_timeouts.metrics()[reason] == 1)


def test_connections_beyond_the_limit_are_answered_with_503_until_others_close(short_timeouts: Running) -> None:
    until(lambda: short_timeouts.metrics()["erlangshen_connections"] == 1)
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connected(short_timeouts)).sendall(b"POST /v1/embed HTTP/1.1\r\nX: ")
        with connected(short_timeouts) as client:
            client.sendall(post())
            received = read_all(client)
        with connected(short_timeouts) as probe:
            probe.sendall(get(b"/readyz"))
            assert statuses(read_all(probe)) == [200]
        assert statuses(received) == [503]
        assert b"retry-after: 5\r\n" in received
    until(lambda: _answers(short_timeouts))


def _answers(server: Running) -> bool:
    with suppress(httpx.TransportError):
        return httpx.post(f"{server.url}/v1/embed", content=BODY, timeout=ANSWER_S).status_code == 200
    return False


MANY = 10_000


@pytest.fixture
def descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < MANY + 500:
        pytest.skip(f"{MANY} connections need a hard limit of open files above it; here it is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("descriptors")
def test_ten_thousand_idle_connections_do_not_block_requests(server: Running) -> None:
    before = memory(server)
    with ExitStack() as stack:
        for _ in range(MANY):
            stack.enter_context(connected(server)).sendall(b"POST /v1/embed HTTP/1.1\r\nX: ")
        until(lambda: server.metrics()["erlangshen_connections"] >= MANY)
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        assert _answers(server)
        assert memory(server) - before < 256 * MIB
    until(lambda: server.metrics()["erlangshen_connections"] < 10)


def test_shutdown_is_announced_and_started_requests_are_answered() -> None:
    with serving("--model", "mini", "--drain-delay-s", "3", "--log-format", "json") as server, ExitStack() as stack:
        used, started = (stack.enter_context(connected(server)) for _ in range(2))
        used.sendall(get(b"/livez"))
        assert b"connection: close" not in used.recv(65536)
        started.sendall(post()[:-1])
        until(lambda: server.metrics()['erlangshen_requests_in_progress{task="embed"}'] == 1)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
        late = httpx.post(f"{server.url}/v1/embed", content=BODY, timeout=ANSWER_S)
        assert (late.status_code, late.headers["connection"]) == (200, "close")
        until(lambda: httpx.post(f"{server.url}/v1/embed", content=BODY).status_code == 503)
        refused = httpx.post(f"{server.url}/v1/embed", content=BODY)
        assert (refused.json()["code"], refused.headers["connection"]) == ("unavailable", "close")
        assert int(refused.headers["retry-after"]) > 0
        used.sendall(get(b"/livez"))
        assert b"connection: close\r\n" in read_all(used)
        assert httpx.get(f"{server.url}/livez").status_code == 200
        started.sendall(post()[-1:])
        received = read_all(started)
        assert statuses(received) == [200]
        assert b"connection: close\r\n" in received
        assert server.process.wait(ANSWER_S) == 0
    assert not any("Traceback" in line or '"level":"error"' in line for line in server.lines)


def test_clients_that_reconnect_are_not_reset_by_a_shutdown_and_do_not_delay_it() -> None:
    """At the end of the drain a connection is answered or refused by the system. An accepted request ends the drain."""
    outcomes: Counter[str] = Counter()
    is_over = threading.Event()

    def reconnect(url: str) -> None:
        while not is_over.is_set():
            try:
                outcomes[str(httpx.get(f"{url}/v1/models", timeout=ANSWER_S).status_code)] += 1
            except httpx.ConnectError:
                outcomes["refused"] += 1
                is_over.wait(0.05)
            except httpx.HTTPError as error:
                outcomes[type(error).__name__] += 1

    with serving("--model", "mini", "--drain-timeout-s", "600", "--log-format", "json") as server:
        clients = [threading.Thread(target=reconnect, args=(server.url,)) for _ in range(8)]
        for client in clients:
            client.start()
        with connected(server) as started:
            started.sendall(post()[:-1])
            until(lambda: server.metrics()['erlangshen_requests_in_progress{task="embed"}'] == 1)
            server.process.send_signal(signal.SIGTERM)
            until(lambda: httpx.post(f"{server.url}/v1/embed", content=BODY).status_code == 503)
            started.sendall(post()[-1:])
            assert statuses(read_all(started)) == [200]
        assert server.process.wait(ANSWER_S) == 0, "long before the drain time-out"
        until(lambda: outcomes["refused"] > 0)
        is_over.set()
        for client in clients:
            client.join(ANSWER_S)
    assert set(outcomes) <= {"200", "refused"}
    assert not any('"level":"error"' in line for line in server.lines)


def test_a_response_that_is_still_being_read_delays_the_shutdown() -> None:
    body = json.dumps({"inputs": ["好[MASK]" + "好" * number for number in range(250)], "top_k": 1000}).encode()
    with serving("--model", "mini", "--log-format", "json") as server, connected(server) as client:
        client.sendall(b"POST /v1/fill-mask HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        until(lambda: server.metrics()['erlangshen_requests_total{code="200",model="mini",task="fill-mask"}'] == 1)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(3)
        received = read_all(client)
        _, _, reply = received.partition(b"\r\n\r\n")
        assert len(json.loads(reply)["results"]) == 250
        assert server.process.wait(ANSWER_S) == 0
