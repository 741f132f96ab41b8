"""The lines of a request's body, as they arrive: each within a length and a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect, Request

from service.api.request import BODY_ERROR, STREAM, BodyStream
from service.errors import RequestTimeout

BOM = b"\xef\xbb\xbf"


@dataclass(slots=True)
class LineReader:
    """Reads a body in lines. A line may take `timeout_s` to arrive, not counting the time in which nothing is read."""

    request: Request
    max_bytes: int
    timeout_s: float
    is_complete: bool = False
    """Whether the whole body was read."""
    _left_s: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._left_s = self.timeout_s

    async def lines(self, first: int) -> AsyncIterator[tuple[int, bytes | None]]:
        """The number and the bytes of each line from number `first` on; None for a line of more than `max_bytes`.

        Lines are numbered from 1, and end with a line feed; the last one need not. Raises what `read` raises.
        """
        number, start, is_too_long = 1, bytearray(), False
        while not self.is_complete:
            *complete, rest = (await self.read()).split(b"\n")
            if complete:
                self._left_s = self.timeout_s
            if number + len(complete) < first:  # quickly past lines that are skipped
                number += len(complete)
                continue
            for part in complete:
                if number >= first:
                    too_long = is_too_long or len(start) + len(part) > self.max_bytes
                    yield number, None if too_long else _text(number, start, part)
                number, is_too_long = number + 1, False
                start.clear()
            if is_too_long or len(start) + len(rest) > self.max_bytes:
                is_too_long = True
                start.clear()
            else:
                start += rest
        if number >= first and (start or is_too_long):
            yield number, None if is_too_long else _text(number, start, b"")

    async def read(self) -> bytes:
        """The bytes that have arrived.

        Raises:
            RequestTimeout: the line takes too long.
            MalformedRequest: the rest of the body is not HTTP.
            ClientDisconnect: the client has gone.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(self._left_s):
                message = await self.request.receive()
        except TimeoutError:
            raise RequestTimeout(f"a part of the body took longer than {self.timeout_s:g} s to arrive") from None
        self._left_s -= loop.time() - began
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        if connection := stream_of(self.request):
            connection.took()
        self.is_complete = not message.get("more_body", False)
        if not self.is_complete and (error := self.request.scope.get("state", {}).get(BODY_ERROR)):
            raise error
        data: bytes = message.get("body", b"")
        return data

    async def pieces(self) -> AsyncIterator[bytes]:
        """The bytes as they arrive; each `max_bytes` of them may take `timeout_s`. Raises what `read` raises."""
        num_bytes = 0
        while not self.is_complete:
            piece = await self.read()
            num_bytes += len(piece)
            if num_bytes >= self.max_bytes:
                num_bytes, self._left_s = 0, self.timeout_s
            yield piece

    async def discard(self) -> None:
        """Reads to the end, and drops what it reads: a client that sends all first reads only then."""
        while not self.is_complete:
            self._left_s = self.timeout_s
            await self.read()


def stream_of(request: Request) -> BodyStream | None:
    """The connection of a request; None behind another server."""
    found: BodyStream | None = request.scope.get("state", {}).get(STREAM)
    return found


def _text(number: int, start: bytearray, rest: bytes) -> bytes:
    """A line without the mark with which some programs on Windows begin a file."""
    data = bytes(start) + rest if start else rest
    return data.removeprefix(BOM) if number == 1 else data
