"""Which requests take the short way, and what the others meet."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from service.api.shortcut import Shortcut


async def endpoint(request: Request) -> Response:
    return Response(request.scope["route"].path)


async def call(**scope: Any) -> bytes:
    """What was answered."""
    sent: list[Any] = []

    async def router(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.body", "body": b"router"})

    async def receive() -> Any:
        raise AssertionError("the endpoint reads no body")

    async def send(message: Any) -> None:
        sent.append(message)

    whole = {"type": "http", "method": "POST", "path": "/v1/x", "headers": [], **scope}
    await Shortcut(router, {"POST": {"/v1/x": endpoint}, "GET": {"/livez": endpoint}})(whole, receive, send)
    body: bytes = sent[-1]["body"]
    return body


async def test_a_known_path_is_answered_at_once_and_its_route_is_told() -> None:
    assert await call() == b"/v1/x"
    assert await call(method="GET", path="/livez") == b"/livez"


@pytest.mark.parametrize(
    "other", [{"method": "GET"}, {"path": "/livez"}, {"path": "/v1/x/"}, {"path": "/v1/y"}, {"type": "websocket"}]
)
async def test_all_else_is_the_routers(other: dict[str, str]) -> None:
    assert await call(**other) == b"router"
