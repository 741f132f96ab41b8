"""A client of `/v1/bulk` over HTTP, at a server that a test scripts; in process, see tests/contract/test_corpora.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.errors import StartupError
from service.tools.corpora.bulk_client import HttpServer, Interrupted
from tests.support.servers import free_port

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LINES = [b'{"n":%d}' % number for number in range(1, 4)]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@asynccontextmanager
async def scripted(handle: Handler) -> AsyncIterator[HttpServer]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await handle(reader, writer)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield HttpServer(f"http://127.0.0.1:{port}/prefix", "secret")


def once_read(response: bytes) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"0\r\n\r\n")
        writer.write(response)

    return handle


async def replies(client: HttpServer) -> list[dict[str, Any]]:
    return [reply async for reply in client.post(LINES)]


async def test_the_lines_are_sent_with_the_key_to_the_path_of_the_server() -> None:
    seen = b""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        seen = await reader.readuntil(b"0\r\n\r\n")
        writer.write(HEAD + chunk(b'{"line":1}\n{"li') + chunk(b'ne":2}\n') + chunk(b""))

    async with scripted(handle) as client:
        assert await replies(client) == [{"line": 1}, {"line": 2}]
    assert seen.startswith(b"POST /prefix/v1/bulk HTTP/1.1\r\n")
    assert b"Authorization: Bearer secret" in seen
    assert b"\n".join(LINES) in seen


async def test_replies_are_read_while_lines_are_sent() -> None:
    """The server takes the last line only after its first reply was read."""
    was_read = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(b'{"line":1}\n'))
        await was_read.wait()
        while not (await reader.read(2**20)).endswith(b"0\r\n\r\n"):
            pass
        writer.write(chunk(b'{"line":2}\n') + chunk(b""))

    async with scripted(handle) as client:
        found = []
        async for reply in client.post([b"x" * 2**20] * 16):
            found.append(reply["line"])
            was_read.set()
        assert found == [1, 2]


@pytest.mark.parametrize(
    ("response", "reason", "wait_s"),
    [
        (
            HEAD + chunk(b'{"start_line":2,"error":{"detail":"the service is stopping"}}\n') + chunk(b""),
            "stopping",
            1.0,
        ),
        (HEAD + chunk(b'{"line":1}\n{"line":2,"resp'), "closed", 1.0),
        (b"", "closed", 1.0),
        (b"HTTP/1.1 503 x\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n", "503", 7.0),
        (b"HTTP/1.1 429 x\r\nContent-Length: 16\r\n\r\n" + b'{"detail":"full"}'[:16], "429", 1.0),
        (b"HTTP/1.1 502 x\r\nContent-Length: 6\r\n\r\n<html>", "502", 1.0),
    ],
    ids=["stopping", "broken", "nothing", "busy", "full", "proxy"],
)
async def test_replies_that_end_early_interrupt(response: bytes, reason: str, wait_s: float) -> None:
    async with scripted(once_read(response)) as client:
        with pytest.raises(Interrupted, match=reason) as caught:
            await replies(client)
    assert caught.value.wait_s == wait_s


async def test_a_server_that_is_not_there_interrupts() -> None:
    with pytest.raises(Interrupted, match="Connect call failed"):
        await replies(HttpServer(f"http://127.0.0.1:{free_port()}"))


async def test_a_key_that_is_refused_ends_the_run() -> None:
    body = b'{"detail":"unknown API key"}'
    response = b"HTTP/1.1 401 x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    async with scripted(once_read(response)) as client:
        with pytest.raises(StartupError, match="unknown API key"):
            await replies(client)
