"""A minimal HTTP/1.1 client over keep-alive connections: a general client costs as much CPU as a small model does.

It reads responses with a Content-Length. No TLS, no redirects, and one kind of retry: an idle connection that the
server has closed in the meantime is replaced.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes


class StaleConnection(ConnectionError):
    """The server closed the connection before the first byte of its response."""


class Client:
    """Connections to one host, as many as there are requests in flight. `key` is an API key; "" sends none."""

    def __init__(self, host: str, port: int, key: str = "") -> None:
        self._host = host
        self._port = port
        self._key = f"Authorization: Bearer {key}\r\n" if key else ""
        self._idle: list[Connection] = []

    async def send(self, method: str, path: str, body: bytes = b"") -> Response:
        """Raises OSError if the server cannot be reached or closes the connection during its response."""
        message = self._message(method, path, body)
        while self._idle:
            try:
                return await self._exchange(self._idle.pop(), message)
            except StaleConnection:
                continue
        return await self._exchange(await asyncio.open_connection(self._host, self._port), message)

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()

    async def _exchange(self, connection: Connection, message: bytes) -> Response:
        reader, writer = connection
        try:
            writer.write(message)
            response, keep = await _read(reader)
        except BaseException:  # a cancelled or broken exchange leaves bytes unread: the connection cannot be used again
            writer.close()
            raise
        if keep:
            self._idle.append(connection)
        else:
            writer.close()
        return response

    def _message(self, method: str, path: str, body: bytes) -> bytes:
        host = f"[{self._host}]" if ":" in self._host else self._host
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {host}:{self._port}\r\n"
            f"{self._key}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


async def _read(reader: asyncio.StreamReader) -> tuple[Response, bool]:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise ConnectionError("the server closed the connection during its response") from error
        raise StaleConnection("the server closed the connection") from error
    except ConnectionResetError as error:
        raise StaleConnection("the server reset the connection") from error
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    try:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    except asyncio.IncompleteReadError as error:
        raise ConnectionError("the server closed the connection during its response") from error
    return Response(int(first.split(" ", 2)[1]), body), headers.get("connection", "").lower() != "close"
