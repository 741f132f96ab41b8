"""The bench's HTTP client against a server that drops connections, and without a server."""

from __future__ import annotations

import asyncio

import pytest

from service.tools.bench.client import Client
from tests.unit.tools.bench.serving import Service, serving


async def test_a_connection_closed_by_the_server_is_replaced() -> None:
    async with serving(lambda path, body: (200, {"path": path}), drops=True) as port:
        client = Client("127.0.0.1", port)
        for _ in range(3):
            assert (await client.send("POST", "/x", b"{}")).status == 200
        client.close()


@pytest.mark.parametrize(("key", "lines"), [("k-1", [b"Authorization: Bearer k-1"]), ("", [])])
async def test_a_key_is_sent_as_a_bearer_token(key: str, lines: list[bytes]) -> None:
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 Fine\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        await Client("127.0.0.1", server.sockets[0].getsockname()[1], key).send("GET", "/v1/models")
    assert [line for line in heads[0].split(b"\r\n") if line.startswith(b"Authorization")] == lines


async def test_send_raises_connection_refused_without_a_server() -> None:
    async with serving(Service()) as port:
        pass
    with pytest.raises(ConnectionRefusedError):
        await Client("127.0.0.1", port).send("GET", "/v1/models")
