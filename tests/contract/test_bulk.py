"""`POST /v1/bulk` in process: what is answered, in which order, and how a request ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpx
import pytest

from service.api.accounts import Key, hash_of
from service.domain import DEFAULT_OPTIONS, RANKS, Encoding, RequestOptions
from service.errors import ReplicaLost
from service.settings import Server
from tests.contract.fakes import FakeSubmit, Service, embedder, running, text_model
from tests.fakes import value

BODY = {"inputs": "好吃", "labels": ["好评", "差评"]}
LINE = {"url": "/v1/classify", "body": BODY}
SMALL = Server(max_body_bytes=1024)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with running() as service:
        yield service


def lines(*each: Any) -> bytes:
    return b"".join(one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in each)


async def post(service: Service, content: Any, query: str = "", **headers: str) -> httpx.Response:
    return await service.client.post(f"/v1/bulk{query}", content=content, headers=headers)


async def replies(service: Service, content: Any, query: str = "") -> list[dict[str, Any]]:
    response = await post(service, content, query)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/x-ndjson")
    return [json.loads(line) for line in response.content.splitlines()]


async def pieces(content: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def test_every_line_is_answered_with_its_number_and_id(service: Service) -> None:
    content = lines(LINE | {"custom_id": "a"}, LINE, LINE | {"custom_id": {"b": [1]}})
    found = await replies(service, content)
    assert [(one["line"], one.get("custom_id")) for one in found] == [(1, "a"), (2, None), (3, {"b": [1]})]
    assert found[0]["response"]["results"][0]["label"] == "好评"


async def test_a_line_has_the_reply_of_its_request(service: Service) -> None:
    body = {"inputs": ["北京是中国的首[MASK]"], "top_k": 2}
    [reply] = await replies(service, lines({"url": "/v1/fill-mask", "body": body}))
    assert reply["response"] == (await service.post("/v1/fill-mask", body)).json()


async def test_an_invalid_line_has_an_error_and_the_others_their_replies() -> None:
    async with running(settings=SMALL) as service:
        content = lines(LINE, b"\n", b"{\n", b'{"url": "\xff"}\n', b"x" * 2000 + b"\n", LINE | {"url": "/v1/x"}, LINE)
        found = await replies(service, content)
        assert [one["line"] for one in found] == list(range(1, 8))
        assert [one["error"]["status"] if "error" in one else 200 for one in found] == [
            200,
            400,
            400,
            400,
            413,
            422,
            200,
        ]


async def test_the_error_of_a_line_is_that_of_its_request(service: Service) -> None:
    body = BODY | {"inputs": [""]}
    [reply] = await replies(service, lines(LINE | {"body": body}))
    problem = (await service.post("/v1/classify", body)).json()
    assert reply["error"] | {"request_id": ""} == problem | {"request_id": ""}


@pytest.mark.parametrize(
    ("content", "num_lines"),
    [(b"", 0), (lines(LINE)[:-1], 1), (lines(LINE), 1), (lines(LINE).replace(b"\n", b"\r\n"), 1), (b"\n\n", 2)],
    ids=["empty", "no line feed", "line feed", "carriage return", "blank"],
)
async def test_a_line_ends_with_a_line_feed_or_with_the_body(service: Service, content: bytes, num_lines: int) -> None:
    assert len(await replies(service, content)) == num_lines


async def test_a_byte_order_mark_is_left_out(service: Service) -> None:
    [reply] = await replies(service, b"\xef\xbb\xbf" + lines(LINE))
    assert "response" in reply


@pytest.mark.parametrize("size", [1, 7, 64])
async def test_lines_arrive_in_any_pieces(size: int) -> None:
    async with running(settings=SMALL) as service:
        content = lines(LINE, b"x" * 1500 + b"\n", LINE | {"custom_id": 3})
        found = await replies(service, pieces(content, size))
        assert [one.get("error", {}).get("code") for one in found] == [None, "body_too_large", None]
        assert found[2]["custom_id"] == 3


async def test_a_request_goes_on_with_a_line(service: Service) -> None:
    found = await replies(service, lines(*[LINE | {"custom_id": index} for index in range(1, 6)]), "?start_line=4")
    assert [(one["line"], one["custom_id"]) for one in found] == [(4, 4), (5, 5)]
    assert len(service.submit.calls) == 2


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_skipped_lines_may_arrive_in_any_pieces(service: Service, size: int) -> None:
    content = lines(*[LINE | {"custom_id": index} for index in range(1, 21)])
    found = await replies(service, pieces(content, size), "?start_line=19")
    assert [(one["line"], one["custom_id"]) for one in found] == [(19, 19), (20, 20)]


@pytest.mark.parametrize("query", ["?start_line=0", "?start_line=x", "?start_line=", "?start=2"])
async def test_an_unknown_or_invalid_parameter_is_refused(service: Service, query: str) -> None:
    assert (await post(service, lines(LINE), query)).status_code == 422


async def test_a_compressed_body_is_refused(service: Service) -> None:
    response = await post(service, b"\x1f\x8b", **{"content-encoding": "gzip"})
    assert response.json()["code"] == "unsupported_encoding"


async def test_the_body_may_be_larger_than_that_of_a_request() -> None:
    async with running(settings=SMALL) as service:
        assert len(await replies(service, lines(*[LINE] * 100))) == 100


async def test_lines_have_the_lowest_priority_whatever_they_say(service: Service) -> None:
    await post(service, lines(LINE | {"body": BODY | {"priority": "interactive"}}))
    assert [options.priority for options in service.submit.options] == [RANKS["bulk"]]


class Reversed(FakeSubmit):
    """Answers the later of two requests first."""

    async def __call__(self, encodings: Any, options: RequestOptions = DEFAULT_OPTIONS) -> Any:
        number = len(self.calls)
        result = await super().__call__(encodings, options)
        if number == 1:
            await self.arrived_twice.wait()
        elif number == 2:
            self.arrived_twice.set()
        return result

    def __init__(self) -> None:
        super().__init__()
        self.arrived_twice = asyncio.Event()


async def test_replies_have_the_order_of_the_lines_in_whichever_they_are_computed() -> None:
    async with running(submit=Reversed()) as service:
        content = lines(*[LINE | {"body": BODY | {"inputs": text}} for text in ("好", "差", "是", "非")])
        assert [one["line"] for one in await replies(service, content)] == [1, 2, 3, 4]


class Counting(FakeSubmit):
    """Notes how many requests were computed at a time."""

    most = now = 0

    async def __call__(self, encodings: Iterable[Encoding], options: RequestOptions = DEFAULT_OPTIONS) -> Any:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        return await super().__call__(list(encodings), options)


async def test_a_bounded_number_of_lines_is_computed_at_a_time() -> None:
    submit = Counting()
    async with running(submit=submit, settings=Server(bulk_window=3)) as service:
        assert len(await replies(service, lines(*[LINE] * 50))) == 50
        assert submit.most == 3


async def test_no_more_lines_are_computed_at_a_time_than_the_key_may() -> None:
    submit, keys = Counting(), {"k": Key(hash=hash_of("s"), concurrency=2)}
    async with running(submit=submit, keys=keys) as service:
        response = await post(service, lines(*[LINE] * 20), **{"x-api-key": "s"})
        assert len(response.content.splitlines()) == 20
        assert submit.most == 2


async def test_replies_in_memory_take_no_more_than_the_largest_line() -> None:
    """Lines with small replies, and then such with large ones: each of these waits for its turn."""
    content = lines(
        *[{"url": "/v1/embed", "body": {"inputs": "好"}}] * 100,
        *[{"url": "/v1/embed", "body": {"inputs": ["好"] * 100}}] * 20,
    )
    peaks = []
    async with running(embedder(), settings=Server(max_body_bytes=4096)) as service:
        add = service.memory.add

        def note(num_bytes: int) -> None:
            add(num_bytes)
            peaks.append(service.memory.used)

        service.memory.add = note  # type: ignore[method-assign]
        found = await replies(service, content)
        assert [len(one["response"]["results"]) for one in found] == [1] * 100 + [100] * 20
        largest = max(len(json.dumps(one)) for one in found)
        assert 0 < max(peaks) <= 4096 + 2 * largest
        assert service.memory.used == 0


async def test_a_lost_line_fails_and_the_others_go_on() -> None:
    async with running(submit=FakeSubmit(ReplicaLost("the replica was lost twice"))) as service:
        found = await replies(service, lines(LINE, LINE | {"body": {}}))
        assert [one["error"]["code"] for one in found] == ["replica_lost", "invalid_request"]


async def test_a_stop_answers_the_lines_in_work_and_names_the_next_one() -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield lines(LINE, LINE, LINE)
        await asyncio.Event().wait()

    async with running(submit=FakeSubmit(gate=asyncio.Event())) as service:
        request = asyncio.create_task(replies(service, endless()))
        await service.submit.arrived.wait()
        service.stopping.set()
        service.submit.gate.set()  # type: ignore[union-attr]
        first, last = await request
        assert (first["line"], last["start_line"], last["error"]["code"]) == (1, 2, "unavailable")
        assert value(service.metrics, "bulk_ends_total", reason="unavailable") == 1


async def test_a_stopping_server_takes_no_bulk_request(service: Service) -> None:
    service.reason.append("the service is stopping")
    assert (await post(service, lines(LINE))).status_code == 503


async def test_a_line_that_takes_too_long_to_arrive_ends_the_request() -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield lines(LINE) + b"{"
        await asyncio.Event().wait()

    async with running(settings=Server(body_timeout_s=0.05)) as service:
        first, last = await replies(service, slow())
        assert first["line"] == 1
        assert (last["start_line"], last["error"]["code"]) == (2, "request_timeout")


async def test_a_key_has_a_limited_number_of_bulk_requests() -> None:
    gate, keys = asyncio.Event(), {name: Key(hash=hash_of(name)) for name in ("a", "b")}
    async with running(submit=FakeSubmit(gate=gate), settings=Server(max_bulk_streams=1), keys=keys) as service:
        first = asyncio.create_task(post(service, lines(LINE), **{"x-api-key": "a"}))
        await service.submit.arrived.wait()
        refused = await post(service, lines(LINE), **{"x-api-key": "a"})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
        gate.set()
        assert (await post(service, lines(LINE), **{"x-api-key": "b"})).status_code == 200
        await first
        assert (await post(service, lines(LINE), **{"x-api-key": "a"})).status_code == 200


async def test_each_line_counts_towards_the_limits_of_the_key() -> None:
    keys = {"k": Key(hash=hash_of("s"), tokens_per_s=1e6)}
    async with running(keys=keys) as service:
        response = await post(service, lines(LINE, b"\n", LINE), **{"x-api-key": "s"})
        found = [json.loads(line) for line in response.content.splitlines()]
        tokens = sum(one["response"]["usage"]["tokens"] for one in found if "response" in one)
        assert value(service.metrics, "key_tokens_total", key="k") == tokens > 0
        assert value(service.metrics, "key_requests_total", key="k", code="400") == 1


async def test_lines_are_counted_by_result(service: Service) -> None:
    await post(service, lines(LINE, LINE, b"\n"))
    assert value(service.metrics, "bulk_lines_total", result="answered") == 2
    assert value(service.metrics, "bulk_lines_total", result="failed") == 1
    assert value(service.metrics, "bulk_ends_total", reason="complete") == 1
    assert value(service.metrics, "bulk_streams") == 0


async def test_a_cancelled_request_cancels_its_rows() -> None:
    async with running(text_model(), submit=FakeSubmit(gate=asyncio.Event())) as service:
        request = asyncio.create_task(post(service, lines(LINE)))
        await service.submit.arrived.wait()
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        assert service.submit.num_cancelled == 1
        assert value(service.metrics, "bulk_streams") == 0
