"""The HTTP server of `serve`, from its settings to its end.

The server listens at once, and responds with 503 until the models are loaded. SIGTERM drains it.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Sequence
from functools import partial

import uvicorn
import uvloop

from service.api.app import create_app
from service.commands.application import Application
from service.host import fit_connections
from service.replicas.process import Launched
from service.server.certificate import Certificate, check_certificate
from service.server.http_protocol import ConnectionLimits, HttpProtocol
from service.server.listener import bind, remove_socket, url_of
from service.server.prefix import behind_proxies
from service.server.security import (
    allowed_hosts,
    make_key_store,
    make_reload,
    require_keys_or_loopback,
)
from service.server.uvicorn_server import Server
from service.settings import Settings

SWITCH_INTERVAL_S = 0.0005
"""How long a thread may keep Python's lock while the event loop waits for it, as it does after every system call. With
the default of 5 ms, single texts next to clients that ask for replies of 4 MB took 20 times as long (median)."""
LAST_RESPONSES_S = 5
"""Time for the last responses: from the end of the drain, when waiting requests fail, to closing their connections."""


def serve(settings: Settings, workers: Sequence[Launched]) -> None:
    """Returns after a drain. The replicas take the `workers` over.

    Raises:
        StartupError: it cannot start.
    """
    require_keys_or_loopback(settings)
    application = Application(settings, workers=workers)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with bind(settings.server) as listener:
        server = make_server(application, settings)
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_serve(application, server, listener))
        finally:
            remove_socket(settings.server)
    if application.failure is not None:
        raise application.failure


async def _serve(application: Application, server: Server, listener: socket.socket) -> None:
    scheme = "https" if server.config.is_ssl else "http"
    application.begin(url_of(listener, scheme), on_failure=server.leave)
    await server.serve(sockets=[listener])


def make_server(application: Application, settings: Settings) -> Server:
    check_certificate(settings.security)
    key_store = make_key_store(settings.security, application.metrics)
    app = create_app(
        application, settings.server, settings.security, key_store=key_store, lifespan=application.lifespan
    )
    limits = settings.server
    connection_limits = ConnectionLimits(
        limits,
        application.metrics,
        fit_connections(limits.max_connections),
        application.memory,
        allowed_hosts(settings),
    )
    config = uvicorn.Config(
        behind_proxies(app, limits.root_path, settings.security.trusted_proxies),
        http=partial(HttpProtocol, connection_limits=connection_limits),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ssl_certfile=settings.security.tls_cert,
        ssl_keyfile=settings.security.tls_key,
        timeout_keep_alive=round(limits.keep_alive_s),
        timeout_graceful_shutdown=LAST_RESPONSES_S,
    )
    certificate = Certificate(settings.security, config, application.metrics) if config.is_ssl else None
    return Server(config, application, connection_limits, make_reload(key_store, certificate), certificate)
