"""Asking a server that is busy, refuses, breaks off or is not there: a fake behind httpx's transport."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from service.datasets.example import Example
from service.evaluation.asked import EvaluationError
from service.evaluation.server import IN_FLIGHT, MAX_ATTEMPTS, Server

Handler = Callable[[httpx.Request], httpx.Response]
LABELS = ("差", "好")


def examples(num: int) -> list[Example]:
    return [Example("classify", (f"文本{index}",), LABELS, index % 2) for index in range(num)]


def problem(status: int, detail: str, field: str = "", **headers: str) -> httpx.Response:
    body = {"detail": detail, "errors": [{"field": field, "message": detail}] if field else []}
    return httpx.Response(status, json=body, headers={key.replace("_", "-"): value for key, value in headers.items()})


def answer(request: httpx.Request) -> httpx.Response:
    """A perfect model: 文本N is 好 when N is odd."""
    inputs = json.loads(request.content)["inputs"]
    results = [{"label": LABELS[int(text[2:]) % 2], "truncated": False} for text in inputs]
    return httpx.Response(200, json={"model": "fake", "results": results})


class Waits:
    """Stands in for asyncio.sleep and remembers."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def server(handler: Handler, waits: Waits | None = None, model: str | None = None) -> Server:
    client = httpx.AsyncClient(transport=httpx.MockTransport(handler), base_url="http://server")
    return Server(client, model, waits or Waits())


async def test_answers_come_in_order_and_progress_adds_up() -> None:
    steps: list[int] = []
    asked = await server(answer).ask(examples(50), steps.append)
    assert [one.example.texts[0] for one in asked] == [f"文本{index}" for index in range(50)]
    assert all(one.is_correct for one in asked)
    assert sum(steps) == 50


async def test_the_model_asked_for_is_sent_and_the_one_that_answered_is_kept() -> None:
    bodies = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return answer(request)

    asking = server(handler, model="mine")
    await asking.ask(examples(1), id)
    assert bodies[0]["model"] == "mine"
    assert asking.model == "fake"


async def test_busy_is_waited_for_as_long_as_the_server_says() -> None:
    replies = [problem(429, "full", Retry_After="3"), problem(503, "starting", Retry_After="soon")]
    waits = Waits()
    asked = await server(lambda request: replies.pop(0) if replies else answer(request), waits).ask(examples(1), id)
    assert asked[0].is_correct
    assert waits.seconds == [3.0, 0.5]


async def test_a_server_that_stays_busy_is_given_up() -> None:
    waits = Waits()
    with pytest.raises(EvaluationError, match="answers 429: full"):
        await server(lambda _: problem(429, "full"), waits).ask(examples(1), id)
    assert len(waits.seconds) == MAX_ATTEMPTS


async def test_an_input_that_is_refused_does_not_cost_its_neighbours() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if "文本3" in json.loads(request.content)["inputs"]:
            return problem(422, "inputs[0]: too long", "inputs[0]")
        return answer(request)

    asked = await server(handler).ask(examples(6), id)
    assert [one.is_correct for one in asked] == [True, True, True, False, True, True]
    assert (asked[3].chosen, asked[3].reason) == (None, "inputs[0]: too long")


@pytest.mark.parametrize("reply", [problem(404, "model: not served here"), problem(422, "cannot do", "model")])
async def test_a_model_that_cannot_do_it_ends_the_evaluation(reply: httpx.Response) -> None:
    with pytest.raises(EvaluationError, match=r"/v1/classify answers 4"):
        await server(lambda _: reply).ask(examples(40), id)


async def test_no_server_is_said_at_once() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    waits = Waits()
    with pytest.raises(EvaluationError, match="no server answers at http://server"):
        await server(handler, waits).ask(examples(100), id)
    assert waits.seconds == []


async def test_a_connection_that_breaks_is_tried_again() -> None:
    failures = [httpx.RemoteProtocolError("gone")]

    def handler(request: httpx.Request) -> httpx.Response:
        if failures:
            raise failures.pop()
        return answer(request)

    assert (await server(handler).ask(examples(1), id))[0].is_correct


async def test_an_answer_without_a_problem_document_is_still_told() -> None:
    with pytest.raises(EvaluationError, match="answers 502: Bad Gateway"):
        await server(lambda _: httpx.Response(502, text="<html>")).ask(examples(1), id)


async def test_no_more_than_a_few_requests_are_in_flight() -> None:
    class Gauge(httpx.AsyncBaseTransport):
        now = most = 0

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self.now += 1
            self.most = max(self.most, self.now)
            await waits(0)
            self.now -= 1
            return answer(request)

    waits, gauge = Waits(), Gauge()
    asking = Server(httpx.AsyncClient(transport=gauge, base_url="http://server"), None, waits)
    await asking.ask(examples(1000), id)
    assert gauge.most <= IN_FLIGHT
