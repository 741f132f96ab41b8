"""Reading requests: bodies and their limits, JSON errors, and clients that disconnect."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from service.api.json_body import has_more_values, is_quick, parse, text_memory
from service.api.json_body import parse_json as parse_json_within
from service.api.protocols.native import ROUTES
from service.api.request import BODY_ERROR, Headers, not_ready, unless_gone
from service.api.request import read_body as read_body_of
from service.errors import BodyTooLarge, InvalidRequest, MalformedBody, RequestTimeout, Unavailable
from service.settings import Server


def request_of(*messages: dict[str, Any], gone: asyncio.Event | None = None, headers: Any = ()) -> Request:
    """A request that receives these messages in turn; then the client stays connected until `gone` is set."""
    waiting = list(messages)

    async def receive() -> dict[str, Any]:
        if waiting:
            return waiting.pop(0)
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http", "headers": list(headers)}, receive)


async def read_body(request: Request, max_bytes: int) -> bytes:
    return await read_body_of(request, Headers.read(request, Server()), max_bytes)


def chunks(*parts: bytes) -> list[dict[str, Any]]:
    last = len(parts) - 1
    return [{"type": "http.request", "body": part, "more_body": n < last} for n, part in enumerate(parts)]


async def test_a_body_of_the_limit_is_read_and_one_byte_more_is_refused() -> None:
    assert await read_body(request_of(*chunks(b"12", b"345")), 5) == b"12345"
    with pytest.raises(BodyTooLarge, match="5 bytes"):
        await read_body(request_of(*chunks(b"123", b"456")), 5)


async def test_a_body_with_a_too_large_content_length_is_not_read() -> None:
    request = request_of(headers=[(b"content-length", b"6")])
    with pytest.raises(BodyTooLarge):
        await read_body(request, 5)


async def test_read_body_raises_when_the_client_disconnects_during_the_body() -> None:
    gone = asyncio.Event()
    gone.set()
    with pytest.raises(ClientDisconnect):
        await read_body(request_of({"type": "http.request", "body": b"1", "more_body": True}, gone=gone), 5)


async def test_read_body_stops_at_an_empty_message_or_body_error() -> None:
    request = request_of(*chunks(b"12", b""), *chunks(b"3"))
    request.scope["state"] = {}
    assert await read_body(request, 5) == b"12"
    late = request_of(*chunks(b"12", b"", b"3"))
    late.scope["state"] = {BODY_ERROR: RequestTimeout("too slow")}
    with pytest.raises(RequestTimeout, match="too slow"):
        await read_body(late, 5)


async def test_read_body_returns_a_complete_body_despite_a_body_error() -> None:
    request = request_of(*chunks(b"12"))
    request.scope["state"] = {BODY_ERROR: RequestTimeout("too slow")}
    assert await read_body(request, 5) == b"12"


async def test_unless_gone_returns_the_answer_and_leaves_no_task() -> None:
    before = asyncio.all_tasks()

    async def answer() -> str:
        return "yes"

    assert await unless_gone(request_of(), answer()) == "yes"
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_disconnect_together_with_the_answer_does_not_cancel_the_task() -> None:
    """The end of the watch is seen one turn of the loop later, when the task already does something else."""
    gone, answered = asyncio.Event(), asyncio.Event()

    async def answer() -> str:
        await answered.wait()
        return "yes"

    async def serve() -> str:
        found = await unless_gone(request_of(gone=gone), answer())
        for _ in range(3):
            await asyncio.sleep(0)
        return found

    serving = asyncio.create_task(serve())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gone.set()
    answered.set()
    assert await serving == "yes"
    assert serving.cancelling() == 0


async def test_unless_gone_raises_the_error_of_the_answer() -> None:
    async def answer() -> None:
        raise InvalidRequest("no")

    with pytest.raises(InvalidRequest, match="no"):
        await unless_gone(request_of(), answer())


async def never_answer(started: asyncio.Event, ended: asyncio.Event) -> None:
    started.set()
    try:
        await asyncio.Event().wait()
    finally:
        ended.set()


async def test_the_answer_is_cancelled_when_the_client_disconnects() -> None:
    gone, started, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    waiting = asyncio.create_task(unless_gone(request_of(gone=gone), never_answer(started, ended)))
    await started.wait()
    gone.set()
    with pytest.raises(ClientDisconnect):
        await waiting
    assert ended.is_set()


async def test_the_answer_is_cancelled_when_the_server_stops() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    before = asyncio.all_tasks()
    waiting = asyncio.create_task(unless_gone(request_of(), never_answer(started, ended)))
    await started.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


def test_readiness_is_refused_with_its_reason() -> None:
    refusal = not_ready("models are loading")
    assert isinstance(refusal, Unavailable)
    assert refusal.detail == "not ready: models are loading"
    assert refusal.retry_after_s


LIMIT = 5000


def parse_json(body: bytes) -> Any:
    return parse_json_within(body, LIMIT)


def test_the_error_of_malformed_json_has_line_and_column() -> None:
    with pytest.raises(MalformedBody, match="line 2, column 3"):
        parse_json(b'{\n  x": 1}')


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b'{"inputs": "\xff"}', "byte 12 is not UTF-8"),
        (b'{"inputs": "\xed\xa0\x80"}', "byte 12 is not UTF-8"),
        (b"", "it is empty"),
        (b'{"inputs": "\\ud800" x}', "column"),
    ],
)
def test_the_error_of_a_malformed_body_has_its_problem(body: bytes, problem: str) -> None:
    with pytest.raises(MalformedBody, match=problem):
        parse_json(body)


def test_lone_surrogates_are_reported_in_order_at_any_depth() -> None:
    deep = b'{"a": [1, {"b": "\\ud800"}, "\\udfff"], "c": {"\\ud801": {"d": "\\ud802"}}, "e": "\\ud83d\\ude00"}'
    with pytest.raises(InvalidRequest) as caught:
        parse_json(deep)
    assert [one.field for one in caught.value.errors] == ["a[1].b", "a[2]", "c.\ud801"]


@pytest.mark.parametrize("filler", [b"0,", b"[],", b'{"a":[0]},'])
def test_the_search_for_a_surrogate_is_limited(filler: bytes) -> None:
    """The search runs on the event loop, so a huge body gets an error without the path."""
    found = b"[" + filler * 1000 + b'"\\ud800"]'
    with pytest.raises(InvalidRequest, match=r"\[1000\]: holds a lone surrogate"):
        parse_json(found)
    with pytest.raises(MalformedBody, match="more than 5000 JSON values"):
        parse_json(b"[" + filler * LIMIT + b'"\\ud800"]')


@given(
    st.recursive(st.text(st.sampled_from('a,[{"\\')), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_marks_in_strings_are_no_values(value: Any) -> None:
    def count(value: Any) -> int:
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return bool(parts) * (len(parts) - 1) + isinstance(value, dict | list) + sum(map(count, parts))

    body = json.dumps(value).encode()
    assert not has_more_values(body, count(value))
    assert has_more_values(body, count(value) - 1) or not count(value)


def test_a_body_is_quick_by_size_and_by_values() -> None:
    assert is_quick(b'{"inputs": "text"}')
    assert not is_quick(b'"' + b"a" * 300_000 + b'"')
    assert not is_quick(b"[" + b"0," * 3000 + b"0]")


texts = st.text(st.characters(codec=None), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.sampled_from(["text", "inputs"]), inner),
    max_leaves=8,
)
names = st.sampled_from(sorted({name for route in ROUTES for name in route.request.model_fields}))
bodies = st.dictionaries(names | texts, values, max_size=5)


@given(st.binary(max_size=64))
def test_parse_json_accepts_or_refuses_any_bytes(body: bytes) -> None:
    with suppress(InvalidRequest):
        parse_json(body)


@given(st.sampled_from(ROUTES), bodies | values)
def test_parse_accepts_or_refuses_any_json(route: Any, value: Any) -> None:
    with suppress(InvalidRequest):
        limits = Server(max_inputs=2, max_chars=4, max_labels=2)
        parse(json.dumps(value).encode(), route.request, limits).query()


@given(st.text(st.sampled_from("aé中😀\\\\u")), st.booleans())
def test_the_memory_of_texts_is_not_underestimated(text: str, escaped: bool) -> None:
    body = json.dumps([text], ensure_ascii=escaped).encode()
    [parsed] = json.loads(body)
    header = sys.getsizeof("中") - 2
    assert text_memory(body) >= sys.getsizeof(parsed) - header + (0 if parsed.isascii() else len(parsed.encode()))
