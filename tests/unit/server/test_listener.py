"""The listener: accepts many connections per turn of the loop, and retries after a lack of file descriptors."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop

from service.errors import SettingError
from service.server import listener as listener_module
from service.server.listener import Handshakes, Listener, bind, remove_socket, url_of
from service.settings import Server as ServerSettings


class Echo(asyncio.Protocol):
    """Sends back the received bytes."""

    made: list[Echo]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.made.append(self)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    Echo.made = []
    with closing(socket.create_server(("127.0.0.1", 0), backlog=100)) as made:
        made.setblocking(False)
        yield made


UNLIMITED = Handshakes(60.0, room=lambda: 1000, refuse=lambda: None)


@asynccontextmanager
async def accepting(listener: socket.socket) -> AsyncIterator[None]:
    accepting = Listener(listener, Echo, None, UNLIMITED)
    accepting.begin()
    try:
        yield
    finally:
        accepting.close()
        for echo in Echo.made:
            echo.transport.abort()


async def turns_until_accepted(num: int) -> int:
    """Turns of the loop until `num` connections have been accepted."""
    turns = 0
    while len(Echo.made) < num:
        turns += 1
        await asyncio.sleep(0)
    return turns


def test_waiting_connections_are_accepted_in_a_few_turns(listener: socket.socket) -> None:
    async def run() -> int:
        with ExitStack() as clients:
            for _ in range(40):
                clients.enter_context(socket.create_connection(listener.getsockname()))
            async with accepting(listener):
                return await turns_until_accepted(40)

    assert uvloop.run(run()) < 10, "one per turn would need 40"


def test_connections_beyond_one_turn_are_accepted_in_the_next(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "MOST_AT_ONCE", 2)

    async def run() -> None:
        with ExitStack() as clients:
            for _ in range(5):
                clients.enter_context(socket.create_connection(listener.getsockname()))
            async with accepting(listener):
                assert await turns_until_accepted(5) > 2

    uvloop.run(run())


def test_an_accepted_connection_echoes_with_tcp_nodelay(listener: socket.socket) -> None:
    async def run() -> bytes:
        async with accepting(listener):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(b"hello")
            received = await reader.readexactly(5)
            writer.close()
            there = Echo.made[0].transport.get_extra_info("socket")
            assert there.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            return received

    assert uvloop.run(run()) == b"hello"


class ExhaustedSocket:
    """A listening socket whose first `accept` fails because the process has no file descriptor left."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._is_exhausted = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self) -> tuple[socket.socket, object]:
        if self._is_exhausted:
            self._is_exhausted = False
            raise OSError(errno.EMFILE, "Too many open files")
        return self._listener.accept()


def test_accept_is_retried_after_a_lack_of_file_descriptors(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener_module, "PAUSE_S", 0.01)

    async def run() -> None:
        with socket.create_connection(listener.getsockname()):
            async with accepting(cast("socket.socket", ExhaustedSocket(listener))):
                await turns_until_accepted(1)

    with caplog.at_level(logging.WARNING):
        uvloop.run(run())
    (record,) = caplog.records
    assert (record.getMessage(), vars(record)["reason"]) == ("connections are not accepted", "Too many open files")


def test_a_closed_listener_accepts_no_connection(listener: socket.socket) -> None:
    async def run() -> None:
        address = listener.getsockname()
        async with accepting(listener):
            pass
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)

    uvloop.run(run())
    assert Echo.made == []


def test_a_stopped_listener_has_accepted_what_was_waiting(listener: socket.socket) -> None:
    async def run() -> int:
        accepting = Listener(listener, Echo, None, UNLIMITED)
        accepting.begin()
        with ExitStack() as clients:
            for _ in range(5):
                clients.enter_context(socket.create_connection(listener.getsockname()))
            accepting.stop()
            assert accepting.is_opening
            turns = await turns_until_accepted(5)
            accepting.close()
            for echo in Echo.made:
                echo.transport.abort()
            return turns

    assert uvloop.run(run()) < 10


async def has_closed(reader: asyncio.StreamReader) -> bool:
    """Whether the server has closed the connection, within two seconds."""
    with suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(2):
            return await reader.read() == b""
    return False


@asynccontextmanager
async def silent_handshakes(
    listener: socket.socket, handshakes: Handshakes, num: int
) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Clients of a TLS server that connect one after the other and send nothing."""
    accepting = Listener(listener, Echo, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), handshakes)
    accepting.begin()
    clients = [await asyncio.open_connection(*listener.getsockname()) for _ in range(num)]
    await asyncio.sleep(0)
    yield [reader for reader, _ in clients]
    accepting.close()
    for _, writer in clients:
        writer.close()


@pytest.mark.parametrize(("min_handshake_s", "closed"), [(60.0, 2), (0.0, 0)], ids=["newest refused", "oldest ended"])
def test_tls_handshakes_are_limited_from_accept_on(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, min_handshake_s: float, closed: int
) -> None:
    monkeypatch.setattr(listener_module, "MIN_HANDSHAKE_S", min_handshake_s)
    refused: list[int] = []

    async def run() -> bool:
        handshakes = Handshakes(60.0, room=lambda: 2, refuse=lambda: refused.append(1))
        async with silent_handshakes(listener, handshakes, 3) as readers:
            return await has_closed(readers[closed])

    assert uvloop.run(run())
    assert refused == [1]


def test_a_silent_tls_handshake_times_out(listener: socket.socket) -> None:
    async def run() -> bool:
        handshakes = Handshakes(0.05, room=lambda: 2, refuse=lambda: None)
        async with silent_handshakes(listener, handshakes, 1) as [reader]:
            return await has_closed(reader)

    assert uvloop.run(run())


# a Unix socket


def unix(path: Path) -> ServerSettings:
    return ServerSettings(unix_socket=path)


def test_a_unix_socket_is_open_to_owner_and_group(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with bind(unix(path)) as listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert url_of(listener) == f"unix:{path}"


def test_a_socket_that_no_server_listens_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    bind(unix(path)).close()
    assert path.is_socket()
    bind(unix(path)).close()
    remove_socket(unix(path))
    assert not path.exists()


def test_a_second_server_on_a_socket_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with bind(unix(path)), pytest.raises(SettingError, match="another server listens there"):
        bind(unix(path))
    assert path.is_socket()


@pytest.mark.parametrize(("name", "reason"), [("file", "Address already in use"), ("no/s.sock", "No such file")])
def test_a_socket_that_cannot_be_made_is_an_error_with_its_reason(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").write_text("not replaced")
    with pytest.raises(SettingError, match=rf"server\.unix_socket = .*{name}: {reason}"):
        bind(unix(tmp_path / name))
    assert (tmp_path / "file").read_text() == "not replaced"
