"""Requests in lines, which pass through the endpoint of their path and wait where a request is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from service.api.accounts import ANYONE, Account, Key, KeyPermissions, hash_of
from service.api.lines.answers import LineReply, Lines
from service.domain import RANKS, RequestOptions
from service.errors import Forbidden, OutOfMemory, QueueFull, ReplicaLost, Unauthorized, Unavailable
from service.settings import Server
from tests.contract.fakes import FakeSubmit, Service, embedder, running, served_by_both
from tests.fakes import FakeClock, value

BODY = {"inputs": "好吃", "labels": ["好评", "差评"]}
LINE = {"custom_id": "a", "url": "/v1/classify", "body": BODY}


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with running(*served_by_both()) as service:
        yield service


async def answer(service: Service, line: Any, account: Account = ANYONE) -> LineReply:
    lines: Lines = service.app.state.lines
    data = line if isinstance(line, bytes) else json.dumps(line).encode()
    return await lines.answer(data, account, "r-1")


async def test_a_line_has_the_reply_of_its_request(service: Service) -> None:
    body = {"inputs": ["好吃", "难吃"], "model": "e5"}
    reply = await answer(service, {"custom_id": "a", "url": "/v1/embed", "body": body})
    assert (reply.custom_id, reply.status) == ("a", 200)
    assert json.loads(reply.body) == (await service.post("/v1/embed", body)).json()


async def test_a_line_may_name_a_path_of_another_protocol(service: Service) -> None:
    reply = await answer(service, {"url": "/v1/embeddings", "body": {"model": "e5", "input": "好吃"}, "method": "POST"})
    assert json.loads(reply.body)["object"] == "list"


async def test_a_line_has_the_lowest_priority(service: Service) -> None:
    await answer(service, LINE | {"body": BODY | {"priority": "interactive"}})
    assert service.submit.options[0].priority == RANKS["bulk"]


async def test_a_line_is_counted_as_a_request_of_its_task(service: Service) -> None:
    await answer(service, LINE)
    assert value(service.metrics, "requests_total", task="classify", model="mini", code="200") == 1


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        (b"", "malformed_body", "the line is blank"),
        (b" \r", "malformed_body", "the line is blank"),
        (b"{", "malformed_body", "not JSON"),
        (b'{"url": "\xff"}', "malformed_body", "byte 9 is not UTF-8"),
        (b"[]", "invalid_request", "must be a JSON object"),
        ({"body": BODY}, "invalid_request", "url: is required"),
        (LINE | {"url": "/v1/nothing"}, "invalid_request", "/v1/classify, /v1/similarity"),
        (LINE | {"url": "/v1/models"}, "invalid_request", "no path that lines can name"),
        (LINE | {"method": "GET"}, "invalid_request", "method"),
        (LINE | {"body": BODY | {"inputs": ""}}, "invalid_request", "inputs[0].text: must not be empty"),
        (LINE | {"body": BODY | {"model": "other"}}, "model_not_found", "model: not served"),
    ],
)
async def test_an_invalid_line_has_the_error_of_its_request(service: Service, line: Any, code: str, says: str) -> None:
    error = (await answer(service, line)).error
    assert error is not None
    assert (error.code, says in error.detail) == (code, True), error.detail


async def test_the_error_of_a_line_does_not_keep_the_line_in_memory(service: Service) -> None:
    error = (await answer(service, b"{")).error
    assert error is not None
    assert (error.__traceback__, error.__context__, error.__cause__) == (None, None, None)


async def test_an_invalid_line_keeps_its_id(service: Service) -> None:
    assert (await answer(service, {"custom_id": [1, 2], "url": "/v1/classify"})).custom_id == [1, 2]


async def test_a_stream_of_events_does_not_fit_into_a_line(service: Service) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["好评", "差评"]}}}
    body = {"model": "mini", "messages": [{"role": "user", "content": "好吃"}], "response_format": schema}
    assert (await answer(service, {"url": "/v1/chat/completions", "body": body})).error is None
    error = (await answer(service, {"url": "/v1/chat/completions", "body": body | {"stream": True}})).error
    assert error is not None
    assert "text/event-stream" in error.detail


@dataclass
class Admission:
    """Refuses the first calls."""

    errors: list[Exception] = field(default_factory=list)

    def __call__(self, options: RequestOptions) -> None:
        if self.errors:
            raise self.errors.pop()


async def test_a_line_that_is_refused_for_now_is_tried_again() -> None:
    errors: list[Exception] = [QueueFull("full", retry_after_s=0.001), Unavailable("no replica", retry_after_s=0.001)]
    admission = Admission(errors)
    async with running(admit=admission) as service:
        assert (await answer(service, LINE)).status == 200
        assert not admission.errors
        assert value(service.metrics, "requests_total", task="classify", model="mini", code="200") == 1


@pytest.mark.parametrize("error", [ReplicaLost("lost twice"), OutOfMemory("too large")])
async def test_a_line_that_may_be_at_fault_itself_is_not_tried_again(error: Exception) -> None:
    async with running(submit=FakeSubmit(error)) as service:
        assert (await answer(service, LINE)).error is error
        assert len(service.submit.calls) == 1


async def test_a_line_that_waits_ends_when_the_service_stops() -> None:
    admission = Admission([QueueFull("full", retry_after_s=60)])
    async with running(admit=admission) as service:
        waiting = asyncio.create_task(answer(service, LINE))
        service.stopping.set()
        with pytest.raises(Unavailable, match="stopping"):
            await waiting


async def test_a_line_that_is_computed_is_answered_while_the_service_stops() -> None:
    gate = asyncio.Event()
    async with running(submit=FakeSubmit(gate=gate)) as service:
        working = asyncio.create_task(answer(service, LINE))
        await service.submit.arrived.wait()
        service.stopping.set()
        gate.set()
        assert (await working).status == 200


async def test_a_cancelled_line_cancels_its_rows() -> None:
    async with running(submit=FakeSubmit(gate=asyncio.Event())) as service:
        working = asyncio.create_task(answer(service, LINE))
        await service.submit.arrived.wait()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        assert service.submit.num_cancelled == 1


async def test_a_line_counts_towards_the_limits_of_its_account(service: Service) -> None:
    account = Account("k", KeyPermissions(requests_per_s=1, tokens_per_s=1000), FakeClock())
    await answer(service, LINE, account)
    refusal = account.refusal()
    assert refusal is not None
    assert refusal.reason == "requests"


async def test_an_invalid_line_counts_towards_the_limits_too(service: Service) -> None:
    account = Account("k", KeyPermissions(requests_per_s=1), FakeClock())
    await answer(service, b"{", account)
    assert account.refusal() is not None


async def test_a_line_waits_for_the_limits_of_its_account(service: Service) -> None:
    clock = FakeClock()
    account = Account("k", KeyPermissions(requests_per_s=1000), clock)
    for _ in range(1000):
        account.enter()
    waiting = asyncio.create_task(answer(service, LINE, account))
    await asyncio.sleep(0)
    assert not service.submit.calls
    clock.now += 1
    assert (await waiting).status == 200


async def test_a_line_of_a_revoked_key_is_refused() -> None:
    key = Key(hash=hash_of("s"))
    async with running(keys={"k": key}) as service:
        with pytest.raises(Unauthorized, match="revoked"):
            await answer(service, LINE, Account("k", key))


async def test_a_line_of_a_key_that_lost_its_scope_is_refused() -> None:
    key = Key(hash=hash_of("s"), scopes=frozenset({"admin"}))
    async with running(keys={"k": key}) as service:
        [(_, account)] = service.key_store._digests if service.key_store else []
        with pytest.raises(Forbidden, match="infer"):
            await answer(service, LINE, account)


async def test_a_long_line_is_parsed_and_answered() -> None:
    inputs = ["好吃" * 1000] * 100
    async with running(embedder(), settings=Server()) as service:
        reply = await answer(service, {"url": "/v1/embed", "body": {"inputs": inputs}})
        assert len(json.loads(reply.body)["results"]) == 100
