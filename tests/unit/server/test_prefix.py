"""The path prefix: stripped by the proxy or not, from the setting or from the header of a trusted proxy."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api.accounts import Key, hash_of
from service.api.request import PREFIX_KEY
from service.server.prefix import behind_proxies
from service.settings import Server
from tests.contract.fakes import running

PROXY, CLIENT = "10.0.0.9", "198.51.100.7"
BROWSER = {"Accept": "text/html"}
HEADER = "X-Forwarded-Prefix"


@asynccontextmanager
async def served(
    root_path: str | None = None, trusted: tuple[str, ...] = ("10.0.0.0/8",), **more: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """The whole application behind a proxy."""
    async with running(**more) as service, client_of(behind_proxies(service.app, root_path, trusted)) as client:
        yield client


def client_of(app: Any, address: str = PROXY) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app, client=(address, 1)), base_url="http://test")


async def read(
    path: str,
    root_path: str | None = None,
    trusted: tuple[str, ...] = ("10.0.0.0/8",),
    address: str = PROXY,
    **headers: str,
) -> tuple[str | None, str]:
    """The prefix and the path that the application sees."""
    seen: list[Scope] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await Response()(scope, receive, send)

    async with client_of(behind_proxies(application, root_path, trusted), address) as client:
        await client.get(path, headers=headers)
    return seen[0].get(PREFIX_KEY), seen[0]["path"]


@pytest.mark.parametrize("below", ["", "/nlp"], ids=["stripped", "not stripped"])
async def test_with_a_root_path_every_page_is_found(below: str) -> None:
    async with served("/nlp") as client:
        for path in ("/docs", "/static-offline-docs/swagger-ui.css", "/playground/app.js", "/livez"):
            assert (await client.get(below + path)).status_code == 200, path
        assert (await client.get(f"{below}/", headers=BROWSER)).status_code == 200
        assert (await client.post(f"{below}/v1/embed", json={"inputs": "好"})).status_code == 200
        assert (await client.get(f"{below}/openapi.json")).json()["servers"] == [{"url": "/nlp"}]


async def test_the_docs_page_names_its_files_relative_to_itself() -> None:
    async with served() as client:
        page = (await client.get("/docs")).text
    links = re.findall(r"""(?:href|src|url)\s*[:=]\s*["']([^"']+)""", page)
    assert {"openapi.json", "static-offline-docs/swagger-ui-bundle.js", "static-offline-docs/swagger-ui.css"} <= {
        *links
    }
    assert [link for link in links if link.startswith(("/", "http"))] == []


async def test_a_prefix_without_its_slash_leads_to_the_page() -> None:
    async with served("/nlp") as client:
        response = await client.get("/nlp", headers=BROWSER)
        assert (response.status_code, response.headers["location"]) == (307, "/nlp/")
        assert (await client.get("/nlpx", headers=BROWSER)).status_code == 404


async def test_a_prefix_is_taken_off_once_and_at_a_slash_only() -> None:
    assert await read("/nlp/nlp/livez", "/nlp") == ("/nlp", "/nlp/livez")
    assert await read("/nlplivez", "/nlp") == ("/nlp", "/nlplivez")
    assert await read("/nlp", "/nlp") == ("/nlp", "/")


async def test_the_header_of_a_trusted_proxy_is_the_prefix() -> None:
    assert await read("/livez", **{HEADER: "/team/nlp/"}) == ("/team/nlp", "/livez")
    assert await read("/team/nlp/livez", **{HEADER: "/team/nlp"}) == ("/team/nlp", "/livez")
    assert await read("/livez") == (None, "/livez")


async def test_the_client_behind_a_trusted_proxy_does_not_change_who_sent_the_prefix() -> None:
    assert await read("/livez", **{HEADER: "/nlp", "X-Forwarded-For": CLIENT}) == ("/nlp", "/livez")


async def test_a_connection_without_an_address_is_not_trusted() -> None:
    assert await read("/livez", address="", **{HEADER: "/nlp"}) == (None, "/livez")


@pytest.mark.parametrize("trusted", [(), ("10.0.0.0/8",)], ids=["no proxy", "another address"])
async def test_the_header_of_anyone_else_is_ignored(trusted: tuple[str, ...]) -> None:
    found = await read("/evil/livez", None, trusted, CLIENT, **{HEADER: "/evil"})
    assert found == (None, "/evil/livez")


@pytest.mark.parametrize(
    "value", ["nlp", "//evil.example", "/a/../b", "/.", "/a b", "/a?b", "/" + "a" * 200, "/", "/%2e"]
)
async def test_a_header_that_is_no_path_is_ignored(value: str) -> None:
    assert await read("/livez", **{HEADER: value}) == (None, "/livez")


async def test_the_setting_goes_before_the_header() -> None:
    assert await read("/livez", "/nlp", **{HEADER: "/other"}) == ("/nlp", "/livez")


async def test_a_path_with_a_prefix_needs_the_same_key() -> None:
    keys = {"app": Key(hash=hash_of("one"), scopes=frozenset({"infer"}))}
    async with served("/nlp", keys=keys) as client:
        app = {"Authorization": "Bearer one"}
        assert (await client.get("/nlp/metrics")).status_code == 401
        assert (await client.get("/nlp/metrics", headers=app)).status_code == 403
        assert (await client.get("/nlp/v1/models", headers=app)).status_code == 200
        assert (await client.get("/nlp/livez")).status_code == 200


@pytest.mark.parametrize("value", ["", "nlp", "/nlp/", "/", "//nlp", "/../nlp", "/n lp", "http://a/b"])
def test_a_root_path_that_is_no_path_is_refused(value: str) -> None:
    with pytest.raises(ValidationError):
        Server(root_path=value)
