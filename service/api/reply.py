"""The way of one reply to its connection: the head leaves together with the beginning of the body.

uvicorn writes one after the other, and uvloop sends at once what is written: that would be two system calls, the
dearest thing about a small request, two packets, and a client that wakes up twice. Knows no HTTP but what comes first.
"""

from __future__ import annotations

import asyncio

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""No head of a reply: the client waits for it before it sends its body."""


class Reply:
    """In the place of a transport, for one request; `finish` when there is no more to write."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        if data == CONTINUE:
            self._transport.write(data)
        elif self._head is None:
            self._head = data
        else:
            self._transport.write(self._head + data)
            self._head = b""

    def finish(self) -> None:
        """A reply to HEAD has no body."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.finish()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()
