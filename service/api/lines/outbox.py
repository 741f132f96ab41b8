"""Replies on their way to one client: sent as fast as it reads them, and kept in a file while it does not.

A client that reads while it sends is slowed down by its own reading: `Outbox.put` waits for it. A client that sends all
first would wait for ever, as would the server: once nothing could be sent for PATIENCE_S while its request goes on,
replies go to a file, of bounded size.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import IO, Final

from service.errors import RepliesUnread

logger = logging.getLogger(__name__)

PATIENCE_S: Final = 2.0
IN_MEMORY_BYTES: Final = 262_144
"""Replies that wait in memory: as many go to the file in one write."""
CHUNK_BYTES: Final = 65_536


class Spool:
    """Bytes in a file, first in, first out. The file is a ring of at most `max_bytes` bytes; it is made at the first
    use, readable by this user only, and has no name, so that nothing of it is left behind."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size = 0
        self._start = 0
        self._file: IO[bytes] | None = None
        self._lock = threading.Lock()
        """A write goes on in its thread when the task that waits for it is cancelled."""
        self._is_closed = False

    def put(self, data: bytes) -> bool:
        """Appends all of the data; False, and nothing is appended, if there is no room."""
        with self._lock:
            if self._is_closed or self.size + len(data) > self.max_bytes:
                return False
            try:
                self._write(data)
            except OSError as error:
                logger.error("replies cannot be kept in a file", extra={"reason": error.strerror})
                return False
            self.size += len(data)
            return True

    def _write(self, data: bytes) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by `close`
        view, position = memoryview(data), (self._start + self.size) % self.max_bytes
        while view:
            written = os.pwrite(self._file.fileno(), view[: self.max_bytes - position], position)
            view, position = view[written:], (position + written) % self.max_bytes

    def take(self, num_bytes: int) -> bytes:
        """Removes up to `num_bytes`, at least one unless there are none. Raises OSError."""
        with self._lock:
            if self._file is None or self._is_closed or not self.size:
                return b""
            num_bytes = min(num_bytes, self.size, self.max_bytes - self._start)
            data = os.pread(self._file.fileno(), num_bytes, self._start)
            self.size -= len(data)
            self._start = (self._start + len(data)) % self.max_bytes if self.size else 0
            if not self.size:
                os.ftruncate(self._file.fileno(), 0)
            return data

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            if self._file is not None:
                self._file.close()


class Outbox:
    """Sends what is `put`, in its order. `is_receiving` says whether the request still goes on.

    One task puts and finishes; `close` in any case.
    """

    def __init__(
        self,
        send: Callable[[bytes], Awaitable[None]],
        spool: Spool,
        is_receiving: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._spool = spool
        self._is_receiving = is_receiving
        self._clock = clock
        self._recent: deque[bytes] = deque()
        """What is not in the file, and newer than all that is."""
        self._num_recent = 0
        self._sending_since: float | None = None
        self._filled, self._sent = asyncio.Event(), asyncio.Event()
        self._moving = asyncio.Lock()
        """Held while bytes move from memory to the file, or out of the file."""
        self._is_finished = False
        self._task = asyncio.create_task(self._run())

    @property
    def is_stalled(self) -> bool:
        """Whether the client has read nothing for PATIENCE_S."""
        since = self._sending_since
        return since is not None and self._clock() - since >= PATIENCE_S

    async def put(self, data: bytes) -> None:
        """Returns once there is room for the next reply.

        Raises what sending raises, and RepliesUnread: there is no room, and the request must end. The data are sent all
        the same.
        """
        self._append(data)
        while self._num_recent > IN_MEMORY_BYTES and not self._task.done():
            if self._spool.max_bytes and self.is_stalled and self._is_receiving():
                await self._spool_recent()
                return
            self._sent.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S / 2):
                    await self._sent.wait()
        if self._task.done():
            await self._task

    async def finish(self, last: bytes = b"") -> None:
        """Returns once everything is sent. Raises what sending raises."""
        self._append(last)
        self._is_finished = True
        await self._task

    async def close(self) -> None:
        """Stops sending, and drops what is not sent."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        async with self._moving:
            self._spool.close()

    def _append(self, data: bytes) -> None:
        self._recent.append(data)
        self._num_recent += len(data)
        self._filled.set()

    async def _spool_recent(self) -> None:
        async with self._moving:
            data = b"".join(self._recent)
            if not await asyncio.to_thread(self._spool.put, data):
                waiting = self._spool.size + len(data)
                raise RepliesUnread(f"the client does not read its replies, of which {waiting} bytes wait")
            self._recent.clear()
            self._num_recent = 0

    async def _run(self) -> None:
        while (chunk := await self._next()) or not self._is_finished:
            if chunk:
                self._sending_since = self._clock()
                await self._send(chunk)
                self._sending_since = None
                self._sent.set()
            else:
                await self._filled.wait()

    async def _next(self) -> bytes:
        """The oldest bytes; none if nothing waits."""
        async with self._moving:
            if self._spool.size:
                return await asyncio.to_thread(self._spool.take, CHUNK_BYTES)
            self._filled.clear()
            pieces, num_bytes = [], 0
            while self._recent and num_bytes < CHUNK_BYTES:
                pieces.append(self._recent.popleft())
                num_bytes += len(pieces[-1])
            self._num_recent -= num_bytes
            return b"".join(pieces)
