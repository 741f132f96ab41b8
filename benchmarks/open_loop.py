"""Load over raw connections with prepared messages, cheap enough to send far more than a server can answer.

Open loop: messages leave at random moments (Poisson) whatever became of those before, and a reply's seconds count from
the moment at which its message was meant to leave. Closed loop: so many connections, each sends its next message when
its last is answered. Knows just enough of HTTP for replies with a Content-Length.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

MAX_CONNECTIONS = 2000
PATIENCE_S = 15.0
"""For replies that are still to come when the last message has left."""

NO_ANSWER = 0
"""In place of a status: the connection broke, or nothing came, or there were too many connections to send it."""

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_CODE = re.compile(rb'"code":"(\w+)"')


@dataclass(frozen=True, slots=True)
class Reply:
    """`due` and `at` are when its message was meant to leave and when it came; `code` is that of an error."""

    due: float
    at: float
    status: int
    code: str = ""
    has_retry_after: bool = False

    @property
    def seconds(self) -> float:
        return self.at - self.due


class Connection(asyncio.Protocol):
    """One message at a time. `on_reply` is called for each, with NO_ANSWER where the connection breaks meanwhile."""

    def __init__(self, on_reply: Callable[[Connection, Reply], None], on_lost: Callable[[Connection], None]) -> None:
        self._on_reply = on_reply
        self._on_lost = on_lost
        self._reply = bytearray()
        self._due: float | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def send(self, message: bytes, due: float) -> None:
        self._due = due
        self._transport.write(message)

    def close(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._reply += data
        head = self._reply.find(b"\r\n\r\n")
        length = _LENGTH.search(self._reply, 0, head) if head > 0 else None
        if self._due is None or length is None or len(self._reply) < head + 4 + int(length[1]):
            return
        due, self._due = self._due, None
        reply = _read(self._reply, head, due)
        self._reply.clear()
        self._on_reply(self, reply)

    def connection_lost(self, error: Exception | None) -> None:
        self._on_lost(self)
        if self._due is not None:
            self._on_reply(self, Reply(self._due, time.perf_counter(), NO_ANSWER))


def _read(whole: bytearray, head: int, due: float) -> Reply:
    status = int(whole[9:12])
    now = time.perf_counter()
    if status == 200:
        return Reply(due, now, status)
    code = _CODE.search(whole, head)
    return Reply(due, now, status, code[1].decode() if code else "", b"retry-after-ms:" in whole[:head].lower())


class Sender:
    """Sends `messages` to a port of this machine; `replies` is what came, in order of coming."""

    def __init__(self, port: int, messages: Iterator[bytes]) -> None:
        self._port = port
        self._messages = messages
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._num_sent = 0
        self._has_come = asyncio.Event()
        self._resend: Callable[[Connection], None] | None = None
        self.replies: list[Reply] = []

    async def open(self, rate: float, seconds: float, rng: random.Random) -> list[Reply]:
        """The replies to all that left in these seconds; returns when they are there, or PATIENCE_S later."""
        self._begin()
        start = time.perf_counter()
        due = start + rng.expovariate(rate)
        connecting = set()
        while due < start + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if self._idle:
                self._send(self._idle.pop(), due)
            else:
                task = asyncio.create_task(self._connect(due))
                connecting.add(task)
                task.add_done_callback(connecting.discard)
            due += rng.expovariate(rate)
        await asyncio.gather(*connecting)
        return await self._rest()

    async def closed(self, clients: int, seconds: float) -> list[Reply]:
        """The replies that came in these seconds."""
        self._begin()
        until = time.perf_counter() + seconds
        self._resend = lambda free: self._send(free, time.perf_counter())
        await asyncio.gather(*(self._connect(time.perf_counter()) for _ in range(clients)))
        await asyncio.sleep(until - time.perf_counter())
        self._resend = None
        return [reply for reply in await self._rest() if reply.at <= until]

    def close(self) -> None:
        for connection in tuple(self._all):
            connection.close()

    def _begin(self) -> None:
        self.replies = []
        self._num_sent = 0

    async def _connect(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            if len(self._all) >= MAX_CONNECTIONS:
                raise OSError("too many connections")
            _, made = await loop.create_connection(
                lambda: Connection(self._on_reply, self._on_lost), "127.0.0.1", self._port
            )
        except OSError:
            self._num_sent += 1
            self.replies.append(Reply(due, time.perf_counter(), NO_ANSWER))
            return
        self._all.add(made)
        self._send(made, due)

    def _send(self, connection: Connection, due: float) -> None:
        self._num_sent += 1
        connection.send(next(self._messages), due)

    def _on_reply(self, connection: Connection, reply: Reply) -> None:
        self.replies.append(reply)
        self._has_come.set()
        if connection not in self._all:
            return
        if self._resend:
            self._resend(connection)
        else:
            self._idle.append(connection)

    def _on_lost(self, connection: Connection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    async def _rest(self) -> list[Reply]:
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while len(self.replies) < self._num_sent:
                    self._has_come.clear()
                    await self._has_come.wait()
        missing = self._num_sent - len(self.replies)
        now = time.perf_counter()
        return [*self.replies, *(Reply(now - PATIENCE_S, now, NO_ANSWER) for _ in range(missing))]
