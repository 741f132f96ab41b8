"""The listening socket: bind, and accept every waiting connection in each turn of the event loop.

libuv accepts one per turn (its pull request 3696). Under load a turn may take hundreds of milliseconds, and of
connections that arrive together, a probe's among them, each would wait one turn longer than the one before it. Measured
with 32 probes that arrive together while 24 clients send batches: their median is 9 % lower than with the loop's own
accepting, their p99 6 % (medians of three pairs of runs).
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import os
import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from service.errors import SettingError
from service.host import local_address
from service.settings import Server

logger = logging.getLogger(__name__)

BACKLOG = 2048
"""Connections that the kernel holds until they are accepted; the kernel's own limit may be lower."""

MOST_AT_ONCE = 256
"""Open connections get their turn after this many new ones."""

PAUSE_S = 1.0
"""Wait after there was no file descriptor or memory for a connection; asyncio waits as long."""


MIN_HANDSHAKE_S = 1.0
"""A TLS handshake that has not taken longer is not ended to make room for another one."""


SO_ATTACH_FILTER = 26
"""Of Linux; Python has no name for it."""


SOCKET_UMASK = 0o117
"""A Unix socket is open to its owner and its group."""
PROBE_S = 1.0


def _drop_all_packets() -> bytes:
    """A socket filter (struct sock_fprog) with one instruction: keep no byte of a packet."""
    return struct.pack("HP", 1, ctypes.addressof(_RETURN_NOTHING))


_RETURN_NOTHING = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0), 8)


@dataclass(frozen=True, slots=True)
class Handshakes:
    """Limits on TLS handshakes: `room` is how many may be under way, `refuse` counts one that is not finished."""

    timeout_s: float
    room: Callable[[], int]
    refuse: Callable[[], None]


class Listener:
    """Stands in for an asyncio.Server, as far as uvicorn uses one. Open connections stay open when it closes."""

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None,
        handshakes: Handshakes,
    ) -> None:
        self._listener = listener
        self._protocol = protocol
        self._tls = tls
        self._handshakes = handshakes
        self._loop = asyncio.get_running_loop()
        self._opening: dict[asyncio.Task[None], float] = {}
        self._paused: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        self._paused = None
        self._loop.add_reader(self._listener, self._accept)

    @property
    def is_opening(self) -> bool:
        """Whether a connection is accepted and not open yet; TLS handshakes of more than MIN_HANDSHAKE_S aside."""
        return any(self._loop.time() - since < MIN_HANDSHAKE_S for since in self._opening.values())

    def stop(self) -> None:
        """Accepts what waits in the kernel, and closes the socket: later connections are refused, and none is reset."""
        if self._listener.fileno() < 0:
            return
        with suppress(OSError):  # not Linux: a connection that arrives now may be reset
            self._listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, _drop_all_packets())
        self._loop.remove_reader(self._listener)
        if self._paused:
            self._paused.cancel()
        while self._accept():
            pass
        self._listener.close()

    def close(self) -> None:
        self.stop()
        for opening in self._opening:
            opening.cancel()

    async def wait_closed(self) -> None:
        """No-op."""

    def _accept(self) -> bool:
        """Accepts up to MOST_AT_ONCE connections. Returns whether more may wait."""
        for _ in range(MOST_AT_ONCE):
            try:
                connected, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return False
            except ConnectionAbortedError:
                continue
            except OSError as error:
                logger.warning("connections are not accepted", extra={"reason": error.strerror, "seconds": PAUSE_S})
                self._loop.remove_reader(self._listener)
                self._paused = self._loop.call_later(PAUSE_S, self.begin)
                return False
            if not self._make_room():
                connected.close()  # before the handshake there is no way to say why
                self._handshakes.refuse()
                continue
            connected.setblocking(False)
            opening = self._loop.create_task(self._open(connected))
            self._opening[opening] = self._loop.time()
            opening.add_done_callback(lambda ended: self._opening.pop(ended, None))
        return True

    def _make_room(self) -> bool:
        """Whether one more handshake fits; the longest one is ended for it, if it has taken MIN_HANDSHAKE_S."""
        if self._tls is None or len(self._opening) < self._handshakes.room():
            return True
        oldest, since = next(iter(self._opening.items()), (None, 0.0))
        if oldest is None or self._loop.time() - since < MIN_HANDSHAKE_S:
            return False
        oldest.cancel()
        del self._opening[oldest]
        self._handshakes.refuse()
        return True

    async def _open(self, connected: socket.socket) -> None:
        timeout_s = None if self._tls is None else self._handshakes.timeout_s
        with suppress(OSError):  # the client has left, does not speak TLS, or took too long
            await self._loop.connect_accepted_socket(
                self._protocol, connected, ssl=self._tls, ssl_handshake_timeout=timeout_s
            )


def bind(settings: Server) -> socket.socket:
    """Binds and listens; SettingError when the address cannot be used."""
    if settings.unix_socket is not None:
        return _bind_unix(settings.unix_socket)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        # Here and not in uvicorn: of two servers on one port, the second must fail at once.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        hint = "; choose another with --port" if error.errno == errno.EADDRINUSE else ""
        raise SettingError(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}{hint}") from None
    listener.setblocking(False)
    return listener


def _bind_unix(path: Path) -> socket.socket:
    """Takes the place of a socket that no server listens on any more; nothing else is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(SOCKET_UMASK)
    try:
        if path.is_socket():
            if _answers(path):
                raise SettingError(f"server.unix_socket = {path}: another server listens there")
            path.unlink()
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise SettingError(f"server.unix_socket = {path}: {error.strerror or error}") from None
    except SettingError:
        listener.close()
        raise
    finally:
        os.umask(mask)
    listener.setblocking(False)
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except BlockingIOError:  # its queue is full
            return True
    return True


def remove_socket(settings: Server) -> None:
    """Removes the Unix socket at the end, if it is one."""
    with suppress(OSError):
        if settings.unix_socket is not None and settings.unix_socket.is_socket():
            settings.unix_socket.unlink()


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """The URL at which this machine reaches the server; for a Unix socket `unix:` and its path."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    host = local_address(host)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
