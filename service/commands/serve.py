"""`python -m service serve`: the composition root. Settings in, a running server out.

The HTTP server is up at once and says 503 while models are fetched and loaded; SIGTERM drains and ends with 0.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import cast

import uvicorn
import uvloop

from service import logs
from service.api.accepting import Accepting
from service.api.app import create_app
from service.api.connection import Connection, Door
from service.cli_args import add_setting_flags, settings_from
from service.commands.composition import Composition
from service.commands.security import check_certificate, refuse_strangers, reloading, ring_of
from service.errors import SettingError
from service.host import fit_connections
from service.settings import Server as ServerSettings
from service.settings import Settings

logger = logging.getLogger(__name__)

BACKLOG = 2048
"""Connections that the kernel holds until they are taken, if it is allowed so many."""

LAST_ANSWERS_S = 5
"""From the failing of what still waits to the closing of its connections."""


def run(argv: Sequence[str]) -> int:
    parser = ArgumentParser(prog="python -m service serve", description="Answer requests over HTTP.")
    add_setting_flags(parser)
    settings = settings_from(parser.parse_args(argv))
    logs.configure(settings.log.level, settings.log.format)
    refuse_strangers(settings)
    whole = Composition(settings)
    with bind(settings.server) as listener:
        server = make_server(whole, settings)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(whole, server, listener))
    if whole.failure is not None:
        raise whole.failure
    return 0


async def _serve(whole: Composition, server: Server, listener: socket.socket) -> None:
    scheme = "https" if server.config.is_ssl else "http"
    whole.begin(url_of(listener, scheme), on_failure=server.leave)
    await server.serve(sockets=[listener])


def bind(settings: ServerSettings) -> socket.socket:
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
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def make_server(whole: Composition, settings: Settings) -> Server:
    check_certificate(settings.security)
    ring = ring_of(settings.security, whole.metrics)
    app = create_app(
        whole.pipeline,
        info=whole.info,
        ready=whole.why_not_ready,
        alive=whole.why_not_alive,
        accepting=whole.why_not_able,
        admit=whole.admit,
        settings=settings.server,
        metrics=whole.metrics,
        ring=ring,
        security=settings.security,
        tracer=whole.tracer,
        lifespan=whole.lifespan,
    )
    limits = settings.server
    door = Door(limits, whole.metrics, fit_connections(limits.max_connections))
    config = uvicorn.Config(
        app,
        http=partial(Connection, door=door),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.security.trusted_proxies),
        forwarded_allow_ips=list(settings.security.trusted_proxies),
        ssl_certfile=settings.security.tls_cert,
        ssl_keyfile=settings.security.tls_key,
        timeout_keep_alive=round(limits.keep_alive_s),
        timeout_graceful_shutdown=LAST_ANSWERS_S,
    )
    return Server(config, whole, door, reloading(settings.security, ring, config))


class Server(uvicorn.Server):
    """uvicorn, but a signal first takes the readiness away, and a clean end after a signal is exit code 0; SIGHUP has
    keys and certificate read again."""

    def __init__(
        self, config: uvicorn.Config, whole: Composition, door: Door, reload: Callable[[], None] | None
    ) -> None:
        super().__init__(config)
        self._reload = reload
        self._whole = whole
        self._door = door
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        if self._reload is not None:  # else a terminal that is closed ends the server, as it ends all else
            self._loop.add_signal_handler(signal.SIGHUP, self._reload)
        await super().startup([])
        for listener in sockets or ():
            accepting = Accepting(listener, self._connection, self.config.ssl)
            accepting.begin()
            self.servers.append(cast("asyncio.Server", accepting))

    def _connection(self) -> asyncio.Protocol:
        make = cast("Callable[..., asyncio.Protocol]", self.config.http_protocol_class)
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains; a second Ctrl-C ends at once."""
        if self._loop is not None and not self._whole.is_stopping:
            self._loop.call_soon_threadsafe(self._drain)
            return
        self.should_exit = True
        if sig == signal.SIGINT:
            # uvicorn tells of the lifespan that it cuts off as of a failure.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            self.force_exit = True

    def _drain(self) -> None:
        """Readiness goes, then every answer is the last on its connection, then new requests are refused."""
        assert self._loop is not None, "a signal is handled after startup only"
        self._whole.is_stopping = True
        self._door.is_closing = True
        for connection in cast("set[Connection]", self.server_state.connections):
            connection.close_after_answer()
        logger.info("stopping: running requests are answered first")
        delay, limit = self._door.limits.drain_delay_s, self._door.limits.drain_timeout_s
        self._loop.call_later(delay, self._refuse)
        self._loop.call_later(delay + limit, self._give_up)

    def _refuse(self) -> None:
        self._whole.is_closed = True

    def _give_up(self) -> None:
        self._whole.give_up()
        self.leave()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: when new requests are refused and no other is left, nobody is waited for."""
        if self._whole.is_closed and not self.server_state.tasks:
            self.leave()
        return await super().on_tick(counter)

    def leave(self) -> None:
        self.should_exit = True
