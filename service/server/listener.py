"""Takes the connections that have come to a listening socket: all of them each time around the event loop.

libuv takes one (its pull request 3696). Under load a time around may be hundreds of milliseconds, and of connections
that come together, a probe's among them, each would wait for one more of these than the one before it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress

from service.errors import SettingError
from service.host import local_address
from service.settings import Server

logger = logging.getLogger(__name__)

BACKLOG = 2048
"""Connections that the kernel holds until they are accepted; the kernel's own limit may be lower."""

MOST_AT_ONCE = 256
"""Those who are connected already are not kept waiting for more."""

PAUSE_S = 1.0
"""After there was no descriptor or no memory for a connection; asyncio waits as long."""


class Listener:
    """In the place of an asyncio.Server, for as much as uvicorn asks of one. Connections that are there stay."""

    def __init__(
        self, listener: socket.socket, protocol: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None
    ) -> None:
        self._listener = listener
        self._protocol = protocol
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._paused: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        self._paused = None
        self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Whoever connects from now on waits in the kernel until the socket is closed."""
        self._loop.remove_reader(self._listener)
        if self._paused:
            self._paused.cancel()
        for opening in self._opening:
            opening.cancel()

    async def wait_closed(self) -> None:
        """Nothing of it takes time."""

    def _accept(self) -> None:
        for _ in range(MOST_AT_ONCE):
            try:
                connected, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                logger.warning("connections are not accepted", extra={"reason": error.strerror, "seconds": PAUSE_S})
                self._loop.remove_reader(self._listener)
                self._paused = self._loop.call_later(PAUSE_S, self.begin)
                return
            connected.setblocking(False)
            opening = self._loop.create_task(self._open(connected))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)

    async def _open(self, connected: socket.socket) -> None:
        with suppress(OSError):  # a client that leaves, or does not speak TLS: nobody is there to be told
            await self._loop.connect_accepted_socket(self._protocol, connected, ssl=self._tls)


def bind(settings: Server) -> socket.socket:
    """A listening socket; SettingError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        # Here and not in uvicorn: of two servers on one port, the second has to hear of it now.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        hint = "; choose another with --port" if error.errno == errno.EADDRINUSE else ""
        raise SettingError(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}{hint}") from None
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """Where a browser on this machine finds the server."""
    host, port = listener.getsockname()[:2]
    host = local_address(host)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
