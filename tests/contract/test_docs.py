"""The pages under docs/ and the OpenAPI schema match the code: nothing is missing or out of date."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from service.api import schemas
from service.api.openapi import EXAMPLES
from service.api.protocols.native import ROUTES, TaskRoute
from service.api.protocols.registry import PROTOCOLS
from service.commands.settings import markdown
from service.errors import ServiceError, StartupError
from service.metrics import Metrics
from service.settings import VERSION, Server
from service.settings_sources import setting_rows
from tests.contract.fakes import running

ROOT = Path(__file__).parents[2]
API = (ROOT / "docs/api.md").read_text(encoding="utf-8")
METRICS = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", API, re.MULTILINE | re.DOTALL)
    assert found, f"docs/api.md has no section {title}"
    return found[1]


def names_in(text: str) -> set[str]:
    return set(re.findall(r"[`\"]([a-z_]+)[`\"]", text))


def errors_below(error: type[ServiceError]) -> Iterator[type[ServiceError]]:
    yield error
    for kind in error.__subclasses__():
        yield from errors_below(kind)


def fields_of(model: type[BaseModel]) -> set[str]:
    return set(model.model_fields)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.task)
def test_the_api_page_has_every_field_of_every_route(route: TaskRoute) -> None:
    own = fields_of(route.request) - fields_of(schemas.WindowedRequest)
    for part in route.request.parts.values():
        own |= fields_of(part)
    results = set(EXAMPLES[route.task].reply["results"][0]) - {"tokens", "truncated"}
    text = section(f"POST {route.path}")
    assert own | results <= names_in(text)
    assert route.path in text


def test_the_api_page_has_every_shared_field_and_model_field() -> None:
    assert fields_of(schemas.WindowedRequest) <= names_in(section("What all tasks share"))
    documented = names_in(section("Operations"))
    assert fields_of(schemas.ModelInfo) | fields_of(schemas.ReplicaInfo) | fields_of(schemas.ModelsReply) <= documented


def test_the_api_page_has_every_error_with_its_status() -> None:
    documented = re.findall(r"^\| (\d+) \| `(\w+)` \|", section("Errors"), re.MULTILINE)
    seen = {error for error in errors_below(ServiceError) if not issubclass(error, StartupError)}
    assert len(documented) == len(set(documented))
    assert set(documented) == {(str(error.status), error.code) for error in seen}


def test_the_api_page_names_existing_settings_with_their_defaults() -> None:
    text = section("Limits")
    settings = {row.name: row.default for row in setting_rows()}
    for name in re.findall(r"`(max_\w+|default_\w+)`", text):
        assert name in settings
    for name, shown in (("max_inputs", "256"), ("max_chars", "100,000"), ("max_labels", "256")):
        assert f"{settings[name]:,}" == shown
        assert f"| {shown} (`{name}`)" in text
    assert (settings["max_body_bytes"], settings["default_timeout_ms"], settings["max_timeout_ms"]) == (
        8 * 2**20,
        60_000,
        600_000,
    )


async def test_the_api_page_has_exactly_the_native_routes() -> None:
    async with running(settings=Server(protocols=("none",))) as service:
        paths = service.app.openapi()["paths"]
    documented = set(re.findall(r"(?:POST|GET) (/[\w/.{}-]+)", API)) - {"/docs", "/openapi.json"}
    assert documented == set(paths)


def test_the_settings_page_is_up_to_date() -> None:
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert page == markdown(), "run: python -m service settings --markdown > docs/settings.md"
    assert all(row.help for row in setting_rows())


def test_the_metrics_page_is_up_to_date() -> None:
    entries = Metrics(CollectorRegistry()).entries()
    documented = re.findall(r"^\| `(erlangshen_\w+)` \| (\w+) \| (.*?) \|", METRICS, re.MULTILINE)
    declared = [(one.name, one.kind, ", ".join(f"`{label}`" for label in one.labels) or "-") for one in entries]
    assert sorted(documented) == sorted(declared)
    assert all(one.help for one in entries)


def test_expressions_in_the_metrics_page_use_existing_metrics() -> None:
    declared = {one.name for one in Metrics(CollectorRegistry()).entries()}
    for name in re.findall(r"erlangshen_\w+", METRICS):
        assert name in declared or re.sub(r"_(bucket|sum|count)$", "", name) in declared


async def test_every_metric_is_exposed_before_the_first_request() -> None:
    async with running() as service:
        text = (await service.client.get("/metrics")).text
        for entry in service.metrics.entries():
            assert f"# TYPE {entry.name}" in text
        assert 'erlangshen_requests_total{code="200",model="mini",task="fill-mask"} 0.0' in text
        assert 'erlangshen_requests_total{code="499",model="none",task="embed"} 0.0' in text
        assert "process_resident_memory_bytes" in text
        exposed = {line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE erlangshen_")}
        assert exposed == {entry.name for entry in service.metrics.entries()}


async def test_openmetrics_is_returned_when_accepted() -> None:
    async with running() as service:
        headers = {"accept": "application/openmetrics-text; version=1.0.0"}
        response = await service.client.get("/metrics", headers=headers)
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


async def openapi() -> dict[str, Any]:
    async with running() as service:
        schema: dict[str, Any] = (await service.client.get("/openapi.json")).json()
    return schema


async def test_openapi_has_chinese_examples_and_every_error_for_each_task() -> None:
    schema = await openapi()
    for route in ROUTES:
        operation = schema["paths"][route.path]["post"]
        body = operation["requestBody"]["content"]["application/json"]
        values = [example["value"] for example in body["examples"].values()]
        assert values == list(EXAMPLES[route.task].requests.values())
        assert re.search(r"[\u4e00-\u9fff]", str(values))
        assert body["schema"] == {"$ref": f"#/components/schemas/{route.request.__name__}"}
        assert operation["responses"]["200"]["content"]["application/json"]["example"] == EXAMPLES[route.task].reply
        for status in ("400", "404", "413", "422", "429", "500", "503", "504"):
            content = operation["responses"][status]["content"]["application/problem+json"]
            assert content["example"]["status"] == int(status)
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}


async def test_openapi_has_every_call_of_the_protocols_with_a_summary() -> None:
    paths = (await openapi())["paths"]
    for protocol in PROTOCOLS:
        for call in protocol.calls:
            if call.path is not None:
                path = re.sub(r":path\}", "}", protocol.prefix + call.path)
                assert call.summary
                assert call.summary in paths[path][call.method.lower()]["summary"]


async def test_every_reference_in_openapi_resolves() -> None:
    schema = await openapi()
    for reference in set(re.findall(r"'#/components/schemas/([^']+)'", str(schema))):
        assert reference in schema["components"]["schemas"], reference
    assert "HTTPValidationError" not in schema["components"]["schemas"]


async def test_openapi_describes_every_field_of_a_request() -> None:
    schemas_of = (await openapi())["components"]["schemas"]
    for route in ROUTES:
        described = schemas_of[route.request.__name__]
        assert described["additionalProperties"] is False
        assert set(described["properties"]) == fields_of(route.request)


async def test_the_docs_page_loads_only_local_files() -> None:
    async with running() as service:
        page = (await service.client.get("/docs")).text
        assert not re.search(r"(?:src|href)=\"(?:https?:)?//", page)
        for path in re.findall(r"(?:src|href)=\"(/[^\"]+)\"", page):
            assert (await service.client.get(path)).status_code == 200, path


def test_the_version_equals_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == VERSION
