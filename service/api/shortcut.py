"""The way of a request to a task or a probe: found by its path at once, where the router would try route after route.

The routes are the router's all the same: it documents them, and answers what goes to them by another method.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Way:
    """What the router would leave in the scope as `route`: the log shows its path."""

    path: str
    endpoint: Endpoint


class Shortcut:
    """Serves requests to these methods and paths by itself; all others are the app's."""

    def __init__(self, app: ASGIApp, endpoints: Mapping[str, Mapping[str, Endpoint]]) -> None:
        self._app = app
        self._ways = {
            (method, path): Way(path, endpoint)
            for method, by_path in endpoints.items()
            for path, endpoint in by_path.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        way = self._ways.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if way is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = way
        response = await way.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)
