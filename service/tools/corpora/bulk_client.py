"""What answers lines: `/v1/bulk` of a server at a URL, or of the application in this process.

Lines are sent while replies are read, so that neither side buffers more than what is on the way.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import h11
import orjson

from service.api.auth import BULK
from service.errors import StartupError

CHUNK_BYTES: Final = 65_536
CONNECT_S: Final = 10.0
SILENCE_S: Final = 300.0
"""Without a byte of a reply, a connection is taken for broken."""
RETRY_S: Final = 1.0
WATCH_S: Final = 1.0
BUSY: Final = (429, 502, 503, 504)
MAX_ERROR_BYTES: Final = 4096


class Interrupted(Exception):
    """The replies have ended early; the lines without one are sent again after `wait_s`, here or elsewhere."""

    def __init__(self, reason: str, wait_s: float = RETRY_S) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class BulkClient(Protocol):
    name: str

    def post(self, lines: Sequence[bytes]) -> AsyncGenerator[dict[str, Any], None]:
        """The replies to lines, in their order.

        Raises:
            Interrupted: some of the last lines have none.
            StartupError: no line will ever have one: the key is refused, or the server has no such path.
        """


class InProcess:
    """The application of this process, called as a server calls it.

    `why_not_alive` returns a reason once no line will be computed any more: without it, they wait.
    """

    name = "in process"

    def __init__(
        self, app: Callable[..., Awaitable[None]], why_not_alive: Callable[[], str | None] = lambda: None
    ) -> None:
        self._app = app
        self._why_not_alive = why_not_alive

    async def post(self, lines: Sequence[bytes]) -> AsyncGenerator[dict[str, Any], None]:
        call = _Call(lines)
        running = asyncio.create_task(call.run(self._app))
        try:
            pieces = call.pieces(self._why_not_alive)
            async with aclosing(_replies(pieces, lambda: (call.status, RETRY_S))) as found:
                async for reply in found:
                    yield reply
            await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


class _Call:
    """A request to the application, and its response, of which one piece waits at a time."""

    def __init__(self, lines: Sequence[bytes]) -> None:
        self.status = 0
        self._chunks = _chunks(lines)
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(1)

    async def run(self, app: Callable[..., Awaitable[None]]) -> None:
        try:
            await app(_SCOPE | {"state": {}}, self._receive, self._send)
        except Exception:
            await self._pieces.put(None)
            raise
        await self._pieces.put(None)

    async def _receive(self) -> dict[str, Any]:
        data = next(self._chunks, b"")
        return {"type": "http.request", "body": data, "more_body": bool(data)}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif body := message.get("body"):
            await self._pieces.put(body)

    async def pieces(self, why_not_alive: Callable[[], str | None]) -> AsyncIterator[bytes]:
        """Raises StartupError."""
        piece: bytes | None = b""
        while piece is not None:
            yield piece
            try:
                async with asyncio.timeout(WATCH_S):
                    piece = await self._pieces.get()
            except TimeoutError:
                if reason := why_not_alive():
                    raise StartupError(f"{reason}; the same command goes on from here") from None
                piece = b""


_SCOPE: Final[dict[str, Any]] = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "POST",
    "scheme": "http",
    "path": BULK,
    "raw_path": BULK.encode(),
    "query_string": b"",
    "root_path": "",
    "headers": [(b"host", b"in-process")],
    "client": None,
    "server": None,
}


class HttpServer:
    """A server at a URL, over HTTP/1.1 by h11: httpx would send all lines before it reads a reply."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.name = url
        self._url = urlsplit(url)
        self._key = key

    async def post(self, lines: Sequence[bytes]) -> AsyncGenerator[dict[str, Any], None]:
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await self._connect()
        except (OSError, TimeoutError) as error:
            raise Interrupted(f"{self.name}: {_reason(error)}") from None
        connection = h11.Connection(h11.CLIENT)
        sending = asyncio.create_task(self._send(connection, writer, lines))
        try:
            async with aclosing(self._read(connection, reader)) as found:
                async for reply in found:
                    yield reply
        except (OSError, TimeoutError, h11.RemoteProtocolError) as error:
            raise Interrupted(f"{self.name}: {_reason(error)}") from None
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        is_secure = self._url.scheme == "https"
        context = ssl.create_default_context() if is_secure else None
        port = self._url.port or (443 if is_secure else 80)
        return await asyncio.open_connection(self._url.hostname, port, ssl=context)

    async def _send(self, connection: h11.Connection, writer: asyncio.StreamWriter, lines: Sequence[bytes]) -> None:
        headers = [("Host", self._url.netloc.rpartition("@")[2]), ("Transfer-Encoding", "chunked")]
        headers += [("Authorization", f"Bearer {self._key}")] if self._key else []
        path = f"{self._url.path.rstrip('/')}{BULK}"
        with suppress(OSError, h11.LocalProtocolError):  # reading reports why the connection has ended
            writer.write(connection.send(h11.Request(method="POST", target=path, headers=headers)) or b"")
            for chunk in _chunks(lines):
                writer.write(connection.send(h11.Data(chunk)) or b"")
                await writer.drain()
            writer.write(connection.send(h11.EndOfMessage()) or b"")
            await writer.drain()

    async def _read(
        self, connection: h11.Connection, reader: asyncio.StreamReader
    ) -> AsyncGenerator[dict[str, Any], None]:
        status, wait_s = 0, RETRY_S

        async def body() -> AsyncIterator[bytes]:
            nonlocal status, wait_s
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    async with asyncio.timeout(SILENCE_S):
                        connection.receive_data(await reader.read(CHUNK_BYTES))
                elif isinstance(event, h11.Response):
                    status = event.status_code
                    wait_s = _retry_after(dict(event.headers))
                elif isinstance(event, h11.Data):
                    yield bytes(event.data)
                elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed) or event is h11.PAUSED:
                    return

        async with aclosing(_replies(body(), lambda: (status, wait_s), self.name)) as found:
            async for reply in found:
                yield reply


async def _replies(
    pieces: AsyncIterator[bytes], head: Callable[[], tuple[int, float]], name: str = InProcess.name
) -> AsyncGenerator[dict[str, Any], None]:
    """The replies in a response, of which `head` is the status, and when to try again, once a piece is there."""
    rest = b""
    async for piece in pieces:
        *complete, rest = (rest + piece).split(b"\n")
        if head()[0] != 200:
            rest = piece[:MAX_ERROR_BYTES]
            continue
        for line in complete:
            reply = orjson.loads(line)
            if "start_line" in reply:
                raise Interrupted(f"{name}: {reply['error']['detail']}")
            yield reply
    status, wait_s = head()
    if status == 200:
        return
    try:
        reason = orjson.loads(rest)["detail"]
    except (ValueError, KeyError, TypeError):  # of another server, as a proxy
        reason = f"answers with {status}" if status else "has closed the connection"
    if status in BUSY or not status:
        raise Interrupted(f"{name}: {reason}", wait_s)
    raise StartupError(f"{name}: {reason}")


def _chunks(lines: Sequence[bytes]) -> Iterator[bytes]:
    """The lines, some kilobytes at a time."""
    chunk: list[bytes] = []
    size = 0
    for line in lines:
        chunk.append(line)
        size += len(line) + 1
        if size >= CHUNK_BYTES:
            yield b"\n".join(chunk) + b"\n"
            chunk, size = [], 0
    if chunk:
        yield b"\n".join(chunk) + b"\n"


def _retry_after(headers: dict[bytes, bytes]) -> float:
    text = headers.get(b"retry-after", b"").decode()
    return float(text) if text.isdecimal() else RETRY_S


def _reason(error: Exception) -> str:
    match error:
        case TimeoutError():
            return "does not answer"
        case h11.RemoteProtocolError():
            return "has closed the connection"
        case _:
            return str(error) or type(error).__name__
