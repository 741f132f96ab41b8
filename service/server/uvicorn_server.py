"""uvicorn with a drain: SIGTERM ends the process with 0 once running requests are answered; SIGHUP reloads."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Protocol, cast

import uvicorn

from service.errors import TooManyConnections
from service.server.certificate import Certificate
from service.server.http_protocol import RESERVED_CONNECTIONS, ConnectionLimits, HttpProtocol
from service.server.listener import Handshakes, Listener

logger = logging.getLogger(__name__)

CHECK_TICKS = 10
"""How often the files of the certificate are looked at: once a second."""


class Drainable(Protocol):
    """The service behind the server, as far as stopping it goes."""

    stopping: asyncio.Event
    """Set when the drain begins: readiness is gone; requests are still answered."""
    is_closed: bool
    """New requests are refused."""

    def give_up(self) -> None:
        """Fails the requests that still wait."""
        ...


class Server(uvicorn.Server):
    """The first signal drains instead of stopping at once, and the exit code is 0 afterwards; SIGHUP reloads keys and
    certificate."""

    def __init__(
        self,
        config: uvicorn.Config,
        application: Drainable,
        connection_limits: ConnectionLimits,
        reload: Callable[[], None] | None,
        certificate: Certificate | None = None,
    ) -> None:
        super().__init__(config)
        self._certificate = certificate
        self._reload = reload
        self._application = application
        self._shared = connection_limits
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: list[Listener] = []
        self._accepted: frozenset[asyncio.Task[None]] = frozenset()
        """The requests that had been accepted when new ones began to be refused."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGHUP, self._on_sighup)
        for sig in (signal.SIGUSR1, signal.SIGUSR2):
            self._loop.add_signal_handler(sig, self._on_unused_signal, sig)
        await super().startup([])
        for listener in sockets or ():
            accepting = Listener(listener, self._connection, self.config.ssl, self._handshakes())
            accepting.begin()
            self._listeners.append(accepting)
            self.servers.append(cast("asyncio.Server", accepting))

    def _handshakes(self) -> Handshakes:
        """A handshake counts as a connection from accept on."""
        shared, connections = self._shared, self.server_state.connections
        return Handshakes(
            shared.limits.header_timeout_s,
            room=lambda: shared.max_connections + RESERVED_CONNECTIONS - len(connections),
            refuse=lambda: shared.metrics.connection_refused(TooManyConnections.code),
        )

    def _connection(self) -> asyncio.Protocol:
        make = cast("Callable[..., asyncio.Protocol]", self.config.http_protocol_class)
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first SIGTERM or SIGINT drains; a second SIGINT ends at once, a second SIGTERM changes nothing."""
        if self._loop is not None and not self._application.stopping.is_set():
            self._loop.call_soon_threadsafe(self._drain)
        elif sig == signal.SIGINT:
            # uvicorn logs the lifespan that it cancels as a failure.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            self.should_exit = self.force_exit = True
        elif self._loop is None:
            self.should_exit = True

    def _on_sighup(self) -> None:
        if self._reload is None:
            logger.info("SIGHUP ignored: there are no keys and no certificate to read again")
        else:
            self._reload()

    def _on_unused_signal(self, sig: signal.Signals) -> None:
        logger.info("signal ignored", extra={"signal": sig.name})

    def _drain(self) -> None:
        """First readiness goes and every response is the last on its connection, then new requests are refused."""
        assert self._loop is not None, "a signal is handled after startup only"
        self._application.stopping.set()
        self._shared.is_closing = True
        for connection in cast("set[HttpProtocol]", self.server_state.connections):
            connection.close_after_answer()
        logger.info("stopping: running requests are answered first")
        delay, limit = self._shared.limits.drain_delay_s, self._shared.limits.drain_timeout_s
        self._loop.call_later(delay, self._refuse)
        self._loop.call_later(delay + limit, self._give_up)

    def _refuse(self) -> None:
        self._application.is_closed = True
        self._accepted = frozenset(self.server_state.tasks)

    def _give_up(self) -> None:
        self._application.give_up()
        self.leave()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: once the accepted requests are answered, refuses connections, too; and leaves once every
        response has left. So clients that reconnect all the time do not delay it. Once a second: takes up a certificate
        that was renewed."""
        if self._certificate is not None and counter % CHECK_TICKS == 0:
            self._certificate.reload_if_changed()
        if self._application.is_closed and self._accepted.isdisjoint(self.server_state.tasks):
            for listener in self._listeners:
                listener.stop()
            connections = cast("set[HttpProtocol]", self.server_state.connections)
            is_busy = any(connection.is_busy for connection in connections)
            if not (self.server_state.tasks or is_busy or any(listener.is_opening for listener in self._listeners)):
                self.leave()
        return await super().on_tick(counter)

    def leave(self) -> None:
        self.should_exit = True
