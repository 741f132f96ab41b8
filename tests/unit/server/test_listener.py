"""Connections are taken as they have come: many at a time, and again after a want of descriptors."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing
from typing import cast

import pytest
import uvloop

from service.server import listener as listener_module
from service.server.listener import Listener


class Echo(asyncio.Protocol):
    """Answers what it hears."""

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


@asynccontextmanager
async def taking(listener: socket.socket) -> AsyncIterator[None]:
    taking = Listener(listener, Echo, None)
    taking.begin()
    try:
        yield
    finally:
        taking.close()
        for echo in Echo.made:
            echo.transport.abort()


async def turns_until_made(num: int) -> int:
    """Times around the loop, until so many connections are there."""
    turns = 0
    while len(Echo.made) < num:
        turns += 1
        await asyncio.sleep(0)
    return turns


def test_all_that_have_come_are_taken_together(listener: socket.socket) -> None:
    async def run() -> int:
        with ExitStack() as clients:
            for _ in range(40):
                clients.enter_context(socket.create_connection(listener.getsockname()))
            async with taking(listener):
                return await turns_until_made(40)

    assert uvloop.run(run()) < 10, "one at a time would take 40"


def test_more_than_are_taken_at_once_come_next(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "MOST_AT_ONCE", 2)

    async def run() -> None:
        with ExitStack() as clients:
            for _ in range(5):
                clients.enter_context(socket.create_connection(listener.getsockname()))
            async with taking(listener):
                assert await turns_until_made(5) > 2

    uvloop.run(run())


def test_a_connection_answers_and_waits_for_no_more_to_send(listener: socket.socket) -> None:
    async def run() -> bytes:
        async with taking(listener):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(b"hello")
            heard = await reader.readexactly(5)
            writer.close()
            there = Echo.made[0].transport.get_extra_info("socket")
            assert there.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            return heard

    assert uvloop.run(run()) == b"hello"


class Poor:
    """A listening socket of a process that has no descriptor left, the first time that it is asked."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._is_poor = True

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self) -> tuple[socket.socket, object]:
        if self._is_poor:
            self._is_poor = False
            raise OSError(errno.EMFILE, "Too many open files")
        return self._listener.accept()


def test_without_a_descriptor_it_is_tried_again_later(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener_module, "PAUSE_S", 0.01)

    async def run() -> None:
        with socket.create_connection(listener.getsockname()):
            async with taking(cast("socket.socket", Poor(listener))):
                await turns_until_made(1)

    with caplog.at_level(logging.WARNING):
        uvloop.run(run())
    (record,) = caplog.records
    assert (record.getMessage(), vars(record)["reason"]) == ("connections are not accepted", "Too many open files")


def test_what_is_closed_takes_no_more(listener: socket.socket) -> None:
    async def run() -> None:
        async with taking(listener):
            pass
        with socket.create_connection(listener.getsockname()):
            for _ in range(10):
                await asyncio.sleep(0)

    uvloop.run(run())
    assert Echo.made == []
