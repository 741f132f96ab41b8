"""API keys: the scope of each native route, refusals, rate limits, priorities, logs, and headers of the docs page.

test_scopes.py has the scopes of the routes of all protocols.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import httpx
import pytest
from starlette.routing import Mount, Route

from service.api.accounts import Key, KeyScope, hash_of
from service.api.auth import DOCS, PROBES
from service.api.protocols import native
from service.domain import RANKS
from service.errors import QueueFull
from service.settings import Security, Server
from tests.contract.fakes import FakeSubmit, Service, running
from tests.fakes import FakeClock

SECRETS = {"app": "erl_one", "prometheus": "erl_two", "boss": "erl_three"}
TEXT = "不可外传的文字"


def key(name: str, *scopes: KeyScope, **permissions: Any) -> Key:
    return Key(hash=hash_of(SECRETS[name]), scopes=frozenset(scopes), **permissions)


KEYS = {"app": key("app", "infer"), "prometheus": key("prometheus", "metrics"), "boss": key("boss", "admin")}


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with running(keys=KEYS, settings=Server(protocols=("none",))) as service:
        yield service


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRETS[name]}"}


async def embed(service: Service, headers: dict[str, str], **more: Any) -> httpx.Response:
    return await service.client.post("/v1/embed", json={"inputs": TEXT, **more}, headers=headers)


def routes_of(service: Service) -> list[tuple[str, str]]:
    """A method and a path for each route of the application, mounted ones included."""
    found = []
    for route in flat(service.app.routes):
        if isinstance(route, Mount):
            found.append(("GET", f"{route.path}/swagger-ui.css"))
        else:
            found += [(method, route.path) for method in route.methods or ()]
    return found


def flat(routes: Iterable[Any]) -> Iterator[Route | Mount]:
    """Yields routes; those of an included router are in the place of the router."""
    for route in routes:
        if isinstance(route, Route | Mount):
            yield route
        else:
            yield from flat(route.original_router.routes)


PLAYGROUND = {"/", "/playground/{name}"}


async def test_every_route_but_the_probes_and_the_playground_requires_a_key(service: Service) -> None:
    routes = routes_of(service)
    assert {path for _, path in routes} >= {route.path for route in native.ROUTES} | DOCS | PROBES
    open_ones = set()
    for method, path in routes:
        response = await service.client.request(method, path)
        if response.status_code != 401:
            open_ones.add(path)
    assert open_ones == {"/livez", "/readyz", *PLAYGROUND}


@pytest.mark.parametrize(
    "path",
    ["/playground", "/nowhere", "/v1/embed/", "//v1/embed", "/V1/embed", "/v1/%65mbed", "/livez/", "/livez/../metrics"],
)
async def test_an_unknown_route_requires_a_key(service: Service, path: str) -> None:
    for method in ("GET", "POST", "PUT", "OPTIONS"):
        assert (await service.client.request(method, path)).status_code == 401


STORED = {"/v1/label-sets", "/v1/label-sets/{name}"}
READ = {"/v1/models", "/v1/load", *STORED}
REACHABLE = {
    "app": {*(f"/v1/{route.task}" for route in native.ROUTES), "/v1/bulk", *READ},
    "prometheus": {"/metrics"},
    "boss": {*READ, "/docs", "/openapi.json", "/static-offline-docs/swagger-ui.css"},
}


@pytest.mark.parametrize("name", KEYS)
async def test_a_key_reaches_only_the_routes_of_its_scopes(service: Service, name: str) -> None:
    reached = set()
    for method, path in routes_of(service):
        response = await service.client.request(method, path, headers=bearer(name))
        assert response.status_code != 401
        if response.status_code != 403:
            reached.add(path)
    assert reached == REACHABLE[name] | PROBES | PLAYGROUND


async def test_a_key_is_accepted_in_either_header(service: Service) -> None:
    for headers in (
        {"Authorization": "Bearer erl_one"},
        {"authorization": "bEARER  erl_one "},
        {"X-API-Key": "erl_one"},
        {"Authorization": "Basic eDp5", "X-API-Key": "erl_one"},
        {"Authorization": "Bearer erl_one", "X-API-Key": "other"},
    ):
        assert (await embed(service, headers)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "detail"),
    [
        ({}, "an API key is required"),
        ({"Authorization": "Bearer "}, "an API key is required"),
        ({"Authorization": "erl_one"}, "an API key is required"),
        ({"Authorization": "Basic erl_one"}, "an API key is required"),
        ({"X-API-Key": ""}, "an API key is required"),
        ({"Authorization": "Bearer erl_on"}, "this API key is unknown"),
        ({"Authorization": "Bearer erl_one erl_one"}, "this API key is unknown"),
        ({"X-API-Key": hash_of("erl_one")}, "this API key is unknown"),
        ({"X-API-Key": b"\xff\xfe"}, "this API key is unknown"),
    ],
)
async def test_a_missing_or_unknown_key_is_401(service: Service, headers: dict[str, str], detail: str) -> None:
    response = await embed(service, headers)
    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
    assert response.headers["www-authenticate"] == 'Bearer realm="erlangshen"'
    assert response.json()["detail"].startswith(detail)
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert service.submit.calls == []
    assert value(service, "erlangshen_key_refused_total", key="none", reason="unauthorized") == 1


async def test_a_missing_scope_is_403_and_names_it(service: Service) -> None:
    response = await embed(service, bearer("prometheus"))
    assert (response.status_code, response.json()["code"]) == (403, "forbidden")
    assert response.json()["detail"] == "this route needs a key with the scope infer"
    assert value(service, "erlangshen_key_refused_total", key="prometheus", reason="forbidden") == 1
    assert value(service, "erlangshen_key_requests_total", key="prometheus", code="403") == 1


def value(service: Service, name: str, **labels: str) -> float | None:
    return service.metrics.registry.get_sample_value(name, labels)


async def test_requests_and_tokens_are_counted_by_key(service: Service) -> None:
    tokens = (await embed(service, bearer("app"))).json()["usage"]["tokens"]
    await embed(service, bearer("app"), pooling="median")
    assert value(service, "erlangshen_key_requests_total", key="app", code="200") == 1
    assert value(service, "erlangshen_key_requests_total", key="app", code="422") == 1
    assert value(service, "erlangshen_key_tokens_total", key="app") == tokens == len(TEXT) + 2


async def test_the_queue_gets_account_weight_and_priority_of_the_key() -> None:
    keys = {"app": key("app", "infer", weight=2.5), "boss": key("boss", "infer", priority="bulk")}
    async with running(keys=keys) as service:
        for name, priority in (("app", "bulk"), ("app", "interactive"), ("boss", "interactive")):
            await embed(service, bearer(name), priority=priority)
    submitted = [(options.account, options.weight, options.priority) for options in service.submit.options]
    assert submitted == [("app", 2.5, RANKS["bulk"]), ("app", 2.5, RANKS["interactive"]), ("boss", 1.0, RANKS["bulk"])]


@pytest.mark.parametrize(
    ("body", "header", "expected"),
    [
        (None, None, "interactive"),
        ("bulk", None, "bulk"),
        (None, "bulk", "bulk"),
        ("interactive", "bulk", "bulk"),
        ("bulk", "interactive", "bulk"),
        ("interactive", "interactive", "interactive"),
    ],
)
async def test_the_lower_priority_of_body_and_header_applies(
    body: str | None, header: str | None, expected: Any
) -> None:
    async with running() as service:
        headers = {"X-Request-Priority": header} if header else {}
        response = await embed(service, headers, **({"priority": body} if body else {}))
    assert response.status_code == 200
    assert [(options.account, options.priority) for options in service.submit.options] == [("", RANKS[expected])]


@pytest.mark.parametrize("wrong", ["", "urgent", "Bulk", "0"])
async def test_the_error_of_an_invalid_priority_names_the_field(wrong: str) -> None:
    async with running() as service:
        in_header = await embed(service, {"X-Request-Priority": wrong})
        in_body = await embed(service, {}, priority=wrong)
    fields = [response.json()["errors"][0]["field"] for response in (in_header, in_body)]
    assert (in_header.status_code, in_body.status_code, fields) == (422, 422, ["X-Request-Priority", "priority"])


async def test_a_key_above_requests_per_s_is_429_with_retry_after() -> None:
    clock = FakeClock()
    async with running(keys={"app": key("app", "infer", requests_per_s=2)}, clock=clock) as service:
        assert [(await embed(service, bearer("app"))).status_code for _ in range(3)] == [200, 200, 429]
        response = await embed(service, bearer("app"))
        assert (response.json()["code"], response.headers["retry-after"]) == ("rate_limited", "1")
        assert response.headers["retry-after-ms"] == "500"
        assert response.json()["detail"] == "this key may send 2 requests a second"
        clock.now += 0.5
        assert [(await embed(service, bearer("app"))).status_code for _ in range(2)] == [200, 429]
        assert value(service, "erlangshen_key_refused_total", key="app", reason="requests") == 3
        assert (await service.client.get("/v1/models", headers=bearer("app"))).status_code == 200


async def test_tokens_are_charged_when_encoded_even_if_the_request_fails() -> None:
    clock, tokens = FakeClock(), len(TEXT) + 2
    submit = FakeSubmit(error=QueueFull("full"))
    keys = {"app": key("app", "infer", tokens_per_s=4)}
    async with running(keys=keys, clock=clock, submit=submit) as service:
        assert (await embed(service, bearer("app"))).json()["code"] == "queue_full"
        response = await embed(service, bearer("app"))
        assert (response.status_code, response.json()["code"]) == (429, "rate_limited")
        assert response.headers["retry-after-ms"] == str((tokens - 4 + 1) * 250)
        clock.now += (tokens - 4 + 1) / 4
        assert (await embed(service, bearer("app"))).json()["code"] == "queue_full"
        assert value(service, "erlangshen_key_tokens_total", key="app") == 2 * tokens


async def test_a_key_above_its_concurrency_is_429() -> None:
    gate = asyncio.Event()
    keys = {"app": key("app", "infer", concurrency=1), "boss": key("boss", "infer")}
    async with running(keys=keys, submit=FakeSubmit(gate=gate)) as service:
        first = asyncio.create_task(embed(service, bearer("app")))
        await service.submit.arrived.wait()
        refused = await embed(service, bearer("app"))
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert refused.headers["retry-after"] == "1"
        assert value(service, "erlangshen_key_refused_total", key="app", reason="concurrency") == 1
        gate.set()
        assert (await first).status_code == 200
        assert [(await embed(service, bearer(name))).status_code for name in ("app", "boss")] == [200, 200]


async def test_a_failed_request_frees_its_concurrency_slot() -> None:
    keys = {"app": key("app", "infer", concurrency=1)}
    async with running(keys=keys, submit=FakeSubmit(error=RuntimeError("bug"))) as service:
        assert [(await embed(service, bearer("app"))).status_code for _ in range(3)] == [500, 500, 500]


async def test_the_log_has_the_key_name_and_neither_secret_nor_text(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        await embed(service, bearer("app"), priority="bulk")
        await embed(service, {"X-API-Key": "erl_mine"})
        await embed(service, bearer("prometheus"))
    lines = [vars(one) for one in caplog.records if one.name == "service.access"]
    answered, unknown, forbidden = lines
    wanted = {
        "key": "app",
        "task": "embed",
        "model": "mini",
        "priority": "bulk",
        "inputs": 1,
        "tokens": len(TEXT) + 2,
        "status": 200,
        "queue_ms": 2.0,
        "compute_ms": 30.0,
        "client": "127.0.0.1",
    }
    assert {name: answered[name] for name in wanted} == wanted
    assert {"tokenize_ms", "duration_ms"} <= answered.keys()
    assert (unknown["status"], unknown["code"], "key" in unknown) == (401, "unauthorized", False)
    assert (forbidden["status"], forbidden["code"], forbidden["key"]) == (403, "forbidden", "prometheus")
    everything = str([vars(one) for one in caplog.records])
    assert not any(secret in everything for secret in (*SECRETS.values(), "erl_mine", hash_of("erl_one"), TEXT))


async def test_no_response_contains_a_secret_or_its_hash(service: Service) -> None:
    await embed(service, bearer("app"))
    shown = [
        await service.client.get("/metrics", headers=bearer("prometheus")),
        await service.client.get("/v1/models", headers=bearer("boss")),
        await service.client.get("/openapi.json", headers=bearer("boss")),
        await embed(service, {"X-API-Key": "erl_wrong"}),
    ]
    for one in shown:
        for name, secret in SECRETS.items():
            assert not any(part in one.text for part in (secret, hash_of(secret), KEYS[name].digest.hex()))
        assert "erl_wrong" not in one.text


async def test_openapi_has_security_schemes_when_keys_are_required() -> None:
    async with running(keys=KEYS) as service, running() as free:
        schema = (await service.client.get("/openapi.json", headers=bearer("boss"))).json()
        assert "securitySchemes" not in (await free.client.get("/openapi.json")).json()["components"]
    assert schema["security"] == [{"bearer": []}, {"header": []}]
    assert schema["components"]["securitySchemes"].keys() == {"bearer", "header"}
    without = {path for path, methods in schema["paths"].items() if any("security" in one for one in methods.values())}
    health = {
        path for path in schema["paths"] if path.endswith(("/health", "/health/live", "/health/ready", "/kserve/"))
    }
    assert without == PROBES | health


async def test_open_docs_makes_only_the_docs_public() -> None:
    async with running(keys=KEYS, security=Security(open_docs=True)) as service:
        for path in ("/docs", "/openapi.json", "/static-offline-docs/swagger-ui.css"):
            assert (await service.client.get(path)).status_code == 200
        for path in ("/metrics", "/v1/models", "/docs/x", "/static-offline-docsx"):
            assert (await service.client.get(path)).status_code == 401


async def test_the_docs_page_has_a_strict_content_security_policy() -> None:
    async with running() as service:
        response = await service.client.get("/docs")
    policy = response.headers["content-security-policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", response.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'self' 'sha256-{digest}';" in policy
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["referrer-policy"] == "no-referrer"


ORIGIN = "https://app.example.com"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


async def test_cors_headers_are_absent_without_cors_origins() -> None:
    async with running() as service:
        response = await embed(service, {"Origin": ORIGIN})
        assert not [name for name in response.headers if name.startswith("access-control")]
        assert (await service.client.options("/v1/embed", headers=PREFLIGHT)).status_code == 405


async def test_an_allowed_origin_gets_cors_headers_on_answers_and_errors() -> None:
    async with running(keys=KEYS, security=Security(cors_origins=(ORIGIN,))) as service:
        preflight = await service.client.options("/v1/embed", headers=PREFLIGHT)
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, ORIGIN)
        assert "Authorization" in preflight.headers["access-control-allow-headers"]
        for response in (
            await embed(service, {"Origin": ORIGIN, **bearer("app")}),
            await embed(service, {"Origin": ORIGIN}),
        ):
            assert response.headers["access-control-allow-origin"] == ORIGIN
            assert "Retry-After-Ms" in response.headers["access-control-expose-headers"]
            assert "access-control-allow-credentials" not in response.headers
        other = await embed(service, {"Origin": "https://other.example.com", **bearer("app")})
        assert "access-control-allow-origin" not in other.headers
