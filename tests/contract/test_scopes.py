"""The table of docs/security.md has every route of the application, and the scope that it needs.

python -m tests.contract.test_scopes     # writes the table again
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Mount, Route

from service.api.accounts import Key, KeyScope, hash_of
from service.api.auth import OPERATIONS, Access
from service.api.dispatch import table_of
from service.api.playground import ACCESS as PLAYGROUND
from service.api.protocols import native
from service.api.protocols.registry import PROTOCOLS
from service.settings import PROTOCOLS as NAMES
from tests.contract.fakes import Service, running

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
BEGIN, END = "<!-- scopes:begin -->\n", "<!-- scopes:end -->"
SCOPES: tuple[KeyScope, ...] = ("infer", "metrics", "admin")
KEYS = {scope: Key(hash=hash_of(scope), scopes=frozenset({scope})) for scope in SCOPES}


def rows() -> Iterator[tuple[str, Access]]:
    """The owner and the access of each route."""
    yield from (("operations", access) for access in OPERATIONS)
    yield from (("playground", access) for access in PLAYGROUND)
    for (method, path), offers in table_of((native.PROTOCOL, *PROTOCOLS)).items():
        for owner in dict.fromkeys(offer.protocol.name for offer in offers):
            yield owner, Access(method, path, offers[0].call.scopes)


def written() -> str:
    """The table: one row for the routes of a protocol that need the same scope."""
    found: dict[tuple[str, str], list[str]] = {}
    for owner, access in sorted(rows(), key=lambda row: row[0] not in ("operations", "playground", "native")):
        scope = " or ".join(f"`{one}`" for one in sorted(access.scopes, reverse=True)) or "none"
        found.setdefault((owner, scope), []).append(f"`{access.method} {access.path}`")
    lines = [f"| {owner} | {scope} | {', '.join(routes)} |" for (owner, scope), routes in found.items()]
    return "\n".join(("| API | scope | routes |", "|---|---|---|", *lines, ""))


def flat(routes: Iterable[Any]) -> Iterator[Route | Mount]:
    for route in routes:
        if isinstance(route, Route | Mount):
            yield route
        else:
            yield from flat(route.original_router.routes)


def routes_of(service: Service) -> set[tuple[str, str]]:
    """Method and path of every route; of a GET without its HEAD."""
    found = set()
    for route in flat(service.app.routes):
        if isinstance(route, Mount):
            found.add(("GET", f"{route.path}/{{name}}"))
        else:
            found |= {(method, route.path) for method in route.methods or () if method != "HEAD"}
    return found


def test_the_table_of_the_security_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.split(BEGIN)[1].split(END)[0] == written(), "run: python -m tests.contract.test_scopes"


def test_the_setting_has_the_name_of_every_protocol() -> None:
    assert {protocol.name for protocol in PROTOCOLS} <= set(NAMES)


async def test_every_route_is_listed() -> None:
    async with running(keys=KEYS) as service:
        assert routes_of(service) == {(access.method, access.path) for _, access in rows()}


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_key_reaches_the_routes_of_its_scope_and_no_other(scope: KeyScope) -> None:
    headers = {"Authorization": f"Bearer {scope}"}
    async with running(keys=KEYS) as service:
        for _, access in rows():
            response = await service.client.request(access.method, access.path, headers=headers)
            allowed = not access.scopes or scope in access.scopes
            assert (response.status_code != 403) is allowed, (access, response.status_code)


async def test_without_a_key_only_the_routes_that_need_none_are_reached() -> None:
    async with running(keys=KEYS) as service:
        for _, access in rows():
            response = await service.client.request(access.method, access.path)
            assert (response.status_code != 401) is (not access.scopes), access


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(before + BEGIN + written() + END + rest.partition(END)[2], encoding="utf-8")
