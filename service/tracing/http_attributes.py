"""Attributes of a request by OpenTelemetry's semantic conventions for HTTP servers (version 1.44).

`url.query` is left out: a query may contain a user's text, and no route needs it to be told apart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

KNOWN_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
KNOWN_METHODS_VARIABLE = "OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS"
"""Replaces KNOWN_METHODS; a comma-separated list of case-sensitive names."""
OTHER_METHOD = "_OTHER"
MAX_CHARS = 256
"""Limit on the values that a client chooses freely."""
_DEFAULT_PORTS = {"http": 80, "https": 443}


def known_methods(environ: Mapping[str, str]) -> Collection[str]:
    given = environ.get(KNOWN_METHODS_VARIABLE, "")
    return frozenset(name.strip() for name in given.split(",") if name.strip()) or KNOWN_METHODS


def request_attributes(
    scope: Mapping[str, Any], headers: Mapping[str, str], known: Collection[str] = KNOWN_METHODS
) -> dict[str, str | int]:
    """What is known when a request arrives, from its ASGI `scope`; `url.path` is without the prefix of a proxy."""
    method, scheme = scope["method"], scope.get("scheme", "http")
    found: dict[str, str | int] = {
        "http.request.method": method if method in known else OTHER_METHOD,
        "url.scheme": scheme,
        "url.path": _path(scope)[:MAX_CHARS],
        "network.protocol.version": scope.get("http_version", ""),
        "user_agent.original": headers.get("user-agent", "")[:MAX_CHARS],
    }
    if method not in known:
        found["http.request.method_original"] = method[:MAX_CHARS]
    if client := scope.get("client"):
        found["client.address"] = client[0]
    address, port = _server(headers.get("host", ""), scheme, scope.get("server"))
    if address:
        found["server.address"] = address[:MAX_CHARS]
        if port:
            found["server.port"] = port
    return {name: value for name, value in found.items() if value != ""}


def span_name(method: str, route: str | None, known: Collection[str] = KNOWN_METHODS) -> str:
    return f"{method if method in known else 'HTTP'} {route or ''}".rstrip()


def _path(scope: Mapping[str, Any]) -> str:
    """As in the request line, where the server passes that on."""
    raw = scope.get("raw_path")
    return raw.decode("latin-1") if raw else str(scope["path"])


def _server(host: str, scheme: str, listener: tuple[str, int | None] | None) -> tuple[str, int | None]:
    """Address and port that the client has asked for; those of the listener if its Host is missing or invalid."""
    try:
        asked = urlsplit(f"//{host}")
        if asked.hostname and not (asked.username or asked.path or asked.query or asked.fragment):
            return asked.hostname, asked.port or _DEFAULT_PORTS.get(scheme)
    except ValueError:
        pass
    return listener or ("", None)
