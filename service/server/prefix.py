"""Path prefix: serves everything below a path of a reverse proxy, whether the proxy strips that path or not.

The prefix is taken off the path before any other middleware sees it: keys, limits and metrics know one path of a route.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from service.api.request import PREFIX_KEY, WITHOUT_SLASH
from service.settings import ROOT_PATH

HEADER = b"x-forwarded-prefix"
_VALID = re.compile(ROOT_PATH)
_MAX_CHARS = 200


def behind_proxies(app: ASGIApp, root_path: str | None, trusted_proxies: Sequence[str]) -> ASGIApp:
    """The application with the headers of trusted proxies and the path prefix applied; itself where neither is set."""
    if trusted_proxies:
        app = cast("ASGIApp", ProxyHeadersMiddleware(cast("Any", app), list(trusted_proxies)))
    return PathPrefix(app, root_path, trusted_proxies) if root_path or trusted_proxies else app


class PathPrefix:
    """Leaves the prefix of a request in its scope, and takes it off its path.

    The prefix is `root_path`, or without one the `X-Forwarded-Prefix` of a trusted proxy. Must run before uvicorn's
    middleware for proxies, which replaces the address of the proxy by that of its client.
    """

    def __init__(self, app: ASGIApp, root_path: str | None, trusted_proxies: Sequence[str]) -> None:
        self._app = app
        self._root_path = root_path
        networks = [ipaddress.ip_network(proxy) for proxy in trusted_proxies]

        @lru_cache(maxsize=1024)
        def is_trusted(host: str) -> bool:
            try:
                address = ipaddress.ip_address(host)
            except ValueError:  # of a socket that has no address
                return False
            return any(address in network for network in networks)

        self._is_trusted = is_trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (prefix := self._root_path or self._forwarded(scope)):
            path = scope["path"]
            scope = {**scope, PREFIX_KEY: prefix, WITHOUT_SLASH: path == prefix}
            if path == prefix or path.startswith(f"{prefix}/"):
                scope["path"] = path[len(prefix) :] or "/"
                scope["raw_path"] = scope["raw_path"].removeprefix(prefix.encode()) or b"/"
        await self._app(scope, receive, send)

    def _forwarded(self, scope: Scope) -> str:
        """The prefix in the headers; "" where there is none, two, an invalid one, or the proxy is not trusted."""
        values = [value for name, value in scope["headers"] if name == HEADER]
        client = scope.get("client")
        if len(values) != 1 or client is None or not self._is_trusted(client[0]):
            return ""
        prefix = values[0].decode("latin-1").strip().rstrip("/")
        return prefix if len(prefix) <= _MAX_CHARS and _VALID.fullmatch(prefix) else ""
