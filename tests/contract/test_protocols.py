"""What all calls of the protocols have in common: admission, deadline, priority, limits, log, errors, examples."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from service.api.accounts import Key, hash_of
from service.api.calls import Call, Protocol
from service.api.dispatch import table_of
from service.api.protocols import native
from service.api.protocols.registry import PROTOCOLS
from service.api.schemas import LabelSetBody
from service.domain import RANKS, RequestOptions
from service.errors import QueueFull
from service.settings import Server
from service.stores.label_sets import LabelSets
from tests.contract.fakes import FakeSubmit, running
from tests.contract.protocols import both, classifier, reader
from tests.fakes import FakeClock

pytestmark = pytest.mark.anyio
TEXT = "不可外传的文字"
EMBED = [("/tei/embed", {"inputs": TEXT}), ("/openai/v1/embeddings", {"input": TEXT, "model": "mini"})]


def calls() -> Iterator[tuple[Protocol, Call, str]]:
    """Every call below its prefix whose body is JSON."""
    for protocol in PROTOCOLS:
        for call in protocol.calls:
            if call.path is not None and isinstance(call.body, type) and issubclass(call.body, BaseModel):
                yield protocol, call, protocol.prefix + call.path.replace("{model:path}", "mini")


def label_sets(folder: Path) -> LabelSets[LabelSetBody]:
    sets = LabelSets(folder, partial(LabelSetBody.model_validate, context=Server()), max_sets=9, max_labels=99)
    sets.open()
    sets.put("moderation", {"labels": ["差评", "体育"]}, 2, "", None)
    return sets


async def test_every_call_with_a_task_is_refused_while_no_model_is_ready() -> None:
    async with running() as service:
        service.reason.append("loading")
        for protocol, call, path in calls():
            if call.task is not None:
                response = await service.client.post(path, content=b"not read")
                assert response.status_code == 503, path
                assert int(response.headers["retry-after"]) >= 1
                assert ("type" in response.json() and response.json()["type"] == "about:blank") is (
                    protocol.error_body is None
                )


async def test_every_call_with_a_task_is_refused_by_a_full_queue_before_its_body_is_read() -> None:
    def admit(options: RequestOptions) -> None:
        raise QueueFull("full", retry_after_s=1.5)

    async with running(admit=admit) as service:
        for _, call, path in calls():
            if call.task is not None:
                response = await service.client.post(path, content=b"not read")
                assert (response.status_code, response.headers["retry-after-ms"]) == (429, "1500"), path


async def test_a_body_that_is_not_json_is_400_in_the_shape_of_the_protocol() -> None:
    async with running() as service:
        for protocol, call, path in calls():
            response = await service.client.post(path, content=b"{")
            assert response.status_code == 400, path
            is_problem = response.headers["content-type"] == "application/problem+json"
            assert is_problem is (protocol.error_body is None)
            assert call.summary


@pytest.mark.parametrize(("path", "body"), EMBED, ids=["tei", "openai"])
async def test_deadline_and_priority_are_those_of_the_headers_or_the_default(path: str, body: Any) -> None:
    clock = FakeClock()
    async with running(*both(), clock=clock) as service:
        await service.post(path, body)
        await service.post(path, body, **{"X-Request-Timeout-Ms": "5000", "X-Request-Priority": "bulk"})
    first, second = service.submit.options
    assert (first.deadline, first.priority) == (clock.now + 60, RANKS["interactive"])
    assert (second.deadline, second.priority) == (clock.now + 5, RANKS["bulk"])


@pytest.mark.parametrize(("path", "body"), EMBED, ids=["tei", "openai"])
async def test_tokens_and_requests_count_for_the_key_and_no_text_is_logged(
    path: str, body: Any, caplog: pytest.LogCaptureFixture
) -> None:
    keys = {"app": Key(hash=hash_of("s"))}
    async with running(*both(), keys=keys) as service:
        with caplog.at_level(logging.DEBUG):
            await service.post(path, body, Authorization="Bearer s")
        count = service.metrics.registry.get_sample_value
        assert count("erlangshen_key_tokens_total", {"key": "app"}) == len(TEXT) + 2
        assert count("erlangshen_key_requests_total", {"key": "app", "code": "200"}) == 1
    [line] = [vars(one) for one in caplog.records if one.name == "service.access"]
    assert (line["route"], line["task"], line["key"], line["inputs"]) == (path, "embed", "app", 1)
    assert TEXT not in str([vars(one) for one in caplog.records])


async def test_the_limit_of_a_key_counts_all_protocols_together() -> None:
    keys = {"app": Key(hash=hash_of("s"), requests_per_s=1)}
    async with running(*both(), keys=keys, clock=FakeClock()) as service:
        codes = [(await service.post(path, body, Authorization="Bearer s")).status_code for path, body in EMBED]
    assert codes == [200, 429]


def test_no_protocol_claims_a_body_of_native_fields_only() -> None:
    for offers in table_of((native.PROTOCOL, *PROTOCOLS)).values():
        if not offers[0].protocol.has_prefix:
            model = offers[0].call.body
            assert isinstance(model, type)
            body = dict.fromkeys(model.model_fields, "x")
            assert [offer.protocol.name for offer in offers[1:] if offer.claims(body, {})] == []


async def test_every_example_of_the_openapi_document_is_answered(tmp_path: Path) -> None:
    choice, embedder = both()
    renamed = {"e5-small": "e5"}
    async with running(choice, embedder, classifier(), reader(), label_sets=label_sets(tmp_path)) as service:
        for _, call, path in calls():
            if call.example is None:
                continue
            body = {
                name: renamed.get(value, value) if name == "model" else value for name, value in call.example.items()
            }
            response = await service.post(path, body)
            needs_other = "/models/mini" in path and response.status_code == 422  # of a task that mini cannot do
            assert response.status_code == 200 or needs_other, (path, response.text)


async def test_an_internal_error_shows_nothing_of_the_request() -> None:
    async with running(*both(), submit=FakeSubmit(error=RuntimeError(TEXT))) as service:
        for path, body in EMBED:
            response = await service.post(path, body)
            assert response.status_code == 500
            assert TEXT not in response.text
