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
from collections.abc import Sequence
from types import FrameType

import uvicorn
import uvloop

from service import logs
from service.api.app import create_app
from service.commands.composition import Composition
from service.commands.flags import add_setting_flags, settings_from
from service.errors import SettingError
from service.settings import Server as ServerSettings
from service.settings import Settings

logger = logging.getLogger(__name__)

KEEP_ALIVE_S = 75
"""Longer than the idle time of common load balancers, so that it is they who close a connection."""
LAST_ANSWERS_S = 5
"""From the failing of what still waits to the closing of its connections."""


def run(argv: Sequence[str]) -> int:
    parser = ArgumentParser(prog="python -m service serve", description="Answer requests over HTTP.")
    add_setting_flags(parser)
    settings = settings_from(parser.parse_args(argv))
    logs.configure(settings.log.level, settings.log.format)
    whole = Composition(settings)
    with bind(settings.server) as listener:
        server = make_server(whole, settings)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(whole, server, listener))
    if whole.failure is not None:
        raise whole.failure
    return 0


async def _serve(whole: Composition, server: Server, listener: socket.socket) -> None:
    whole.begin(url_of(listener), on_failure=server.leave)
    await server.serve(sockets=[listener])


def bind(settings: ServerSettings) -> socket.socket:
    """A listening socket; SettingError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        # Here and not in uvicorn: of two servers on one port, the second has to hear of it now.
        listener.listen()
    except OSError as error:
        listener.close()
        hint = "; choose another with --port" if error.errno == errno.EADDRINUSE else ""
        raise SettingError(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}{hint}") from None
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a browser on this machine finds the server."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(whole: Composition, settings: Settings) -> Server:
    app = create_app(
        whole.pipeline,
        info=whole.info,
        ready=whole.why_not_ready,
        accepting=whole.why_not_able,
        settings=settings.server,
        metrics=whole.metrics,
        lifespan=whole.lifespan,
    )
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody here asks for a client's address
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(settings.server.drain_timeout_s) + LAST_ANSWERS_S,
    )
    return Server(config, whole, settings.server)


class Server(uvicorn.Server):
    """uvicorn, but a signal first takes the readiness away, and a clean end after a signal is exit code 0."""

    def __init__(self, config: uvicorn.Config, whole: Composition, settings: ServerSettings) -> None:
        super().__init__(config)
        self._whole = whole
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

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
        assert self._loop is not None, "a signal is handled after startup only"
        self._whole.is_stopping = True
        logger.info("stopping: running requests are answered first")
        delay, limit = self._settings.drain_delay_s, self._settings.drain_timeout_s
        self._loop.call_later(delay, self.leave)
        self._loop.call_later(delay + limit, self._whole.give_up)

    def leave(self) -> None:
        self.should_exit = True
