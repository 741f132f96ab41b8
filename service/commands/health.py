"""`python -m service health`: exits with 0 if the server is ready, else with 1; the health check of a container.

The settings must be those of the server: address, port and TLS.
"""

from __future__ import annotations

import socket
import ssl
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from http.client import OK, HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path

from service.cli_args import add_setting_flags, settings_from
from service.host import local_address
from service.settings import Settings

TIMEOUT_S = 4.0


def run(argv: Sequence[str]) -> int:
    parser = ArgumentParser(prog="python -m service health", description="Check whether the server is ready.")
    add_setting_flags(parser)
    reason = why_not_ready(settings_from(parser.parse_args(argv)))
    if reason is None:
        return 0
    print(reason, file=sys.stderr)
    return 1


def why_not_ready(settings: Settings) -> str | None:
    """The reason why the server is not ready; None if /readyz returns 200."""
    connection = _connection(settings)
    try:
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        where = settings.server.unix_socket or f"{connection.host}:{connection.port}"
        return f"no response from {where}: {type(error).__name__}"
    finally:
        connection.close()
    return None if status == OK else f"/readyz returned {status}"


def _connection(settings: Settings) -> HTTPConnection:
    if settings.server.unix_socket is not None:
        return _UnixConnection(settings.server.unix_socket)
    host, port = local_address(settings.server.host), settings.server.port
    if settings.security.tls_cert is None:
        return HTTPConnection(host, port, timeout=TIMEOUT_S)
    # Without verification: this connects to a local address, and the certificate is issued for the public name.
    return HTTPSConnection(host, port, timeout=TIMEOUT_S, context=ssl._create_unverified_context())


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(str(self._path))
