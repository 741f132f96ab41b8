"""The lean client against a server that drops connections, and against none."""

from __future__ import annotations

import pytest

from service.bench.wire import Client
from tests.unit.bench.serving import Service, serving


async def test_a_connection_that_the_server_dropped_meanwhile_is_replaced() -> None:
    async with serving(lambda path, body: (200, {"path": path}), drops=True) as port:
        client = Client("127.0.0.1", port)
        for _ in range(3):
            assert (await client.send("POST", "/x", b"{}")).status == 200
        client.close()


async def test_no_server_is_an_os_error() -> None:
    async with serving(Service()) as port:
        pass
    with pytest.raises(ConnectionRefusedError):
        await Client("127.0.0.1", port).send("GET", "/v1/models")
