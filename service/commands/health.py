"""`python -m service health`: 0 when the server with these settings is ready, for whoever watches a container.

Knows of the server what the settings tell: where it listens, and whether it speaks TLS.
"""

from __future__ import annotations

import ssl
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from http.client import OK, HTTPConnection, HTTPException, HTTPSConnection

from service.cli_args import add_setting_flags, settings_from
from service.host import local_address
from service.settings import Settings

TIMEOUT_S = 4.0


def run(argv: Sequence[str]) -> int:
    parser = ArgumentParser(
        prog="python -m service health", description="Ask the server of these settings if it is ready."
    )
    add_setting_flags(parser)
    reason = why_not_ready(settings_from(parser.parse_args(argv)))
    if reason is None:
        return 0
    print(reason, file=sys.stderr)
    return 1


def why_not_ready(settings: Settings) -> str | None:
    """None when /readyz says 200."""
    connection = _connection(settings)
    try:
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        return f"no answer: {type(error).__name__}"
    finally:
        connection.close()
    return None if status == OK else f"/readyz says {status}"


def _connection(settings: Settings) -> HTTPConnection:
    host, port = local_address(settings.server.host), settings.server.port
    if settings.security.tls_cert is None:
        return HTTPConnection(host, port, timeout=TIMEOUT_S)
    # It asks this machine whether it is ready, not who it is: the certificate is made out to another name.
    return HTTPSConnection(host, port, timeout=TIMEOUT_S, context=ssl._create_unverified_context())
