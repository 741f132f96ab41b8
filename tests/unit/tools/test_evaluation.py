"""Examples as requests, replies as answers, and the client against a fake server."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import httpx
import pytest

from service.tools.data.converters import Example
from service.tools.evaluation import (
    CHUNK,
    IN_FLIGHT,
    MAX_ATTEMPTS,
    Ask,
    EvaluationClient,
    EvaluationError,
    chunks,
    read_answer,
    request_of,
)

REVIEW = Example("classify", ("味道不错",), ("这是一条差评", "这是一条好评"), 1)
TITLE = Example("classify", ("国足今晚出战",), ("财经", "体育"), 1, "下面新闻属于哪一个类别？")
PAIR = Example("similarity", ("怎么还款", "如何还钱"), ("不相似", "相似"), 1)
INFERENCE = Example("nli", ("他在跑步", "他在运动"), ("contradiction", "neutral", "entailment"), 2)
READING = Example("mrc", ("男：去哪儿？\n女：图书馆。",), ("图书馆", "超市", "图书馆"), 0, "女的去哪儿？")


def test_zero_shot_classification_sends_labels_and_question() -> None:
    assert request_of([TITLE]) == (
        "/v1/classify",
        {"inputs": ["国足今晚出战"], "labels": ["财经", "体育"], "question": "下面新闻属于哪一个类别？"},
    )
    assert request_of([REVIEW])[1] == {"inputs": ["味道不错"], "labels": ["这是一条差评", "这是一条好评"]}


def test_a_pair_to_classify_is_sent_as_text_and_text_pair() -> None:
    pair = Example("classify", ("甲", "乙"), ("否", "是"), 1)
    assert request_of([pair])[1]["inputs"] == [{"text": "甲", "text_pair": "乙"}]


def test_head_sends_only_the_texts() -> None:
    assert request_of([TITLE, REVIEW], Ask(head=True)) == ("/v1/classify", {"inputs": ["国足今晚出战", "味道不错"]})


def test_pairs_and_readings_are_sent_to_their_tasks() -> None:
    assert request_of([PAIR]) == ("/v1/similarity", {"inputs": [["怎么还款", "如何还钱"]]})
    assert request_of([INFERENCE]) == ("/v1/nli", {"inputs": [["他在跑步", "他在运动"]]})
    path, body = request_of([READING])
    assert path == "/v1/mrc"
    assert body["inputs"] == [
        {"passage": "男：去哪儿？\n女：图书馆。", "question": "女的去哪儿？", "choices": ["图书馆", "超市"]}
    ]


def test_chunks_are_full_and_share_task_labels_and_question() -> None:
    examples = [REVIEW] * (CHUNK + 2) + [TITLE] * 3 + [REVIEW]
    assert [len(chunk) for chunk in chunks(examples)] == [CHUNK, 2, 3, 1]
    assert [len(chunk) for chunk in chunks([READING, READING, PAIR])] == [2, 1]
    assert list(chunks([])) == []


def test_read_answer_reads_the_result_of_each_task() -> None:
    assert read_answer(TITLE, {"label": "体育", "truncated": True}).is_correct
    assert read_answer(TITLE, {"label": "体育", "truncated": True}).truncated
    assert not read_answer(INFERENCE, {"label": "neutral", "truncated": False}).is_correct
    assert read_answer(PAIR, {"score": 0.5, "truncated": False}).chosen == "相似"
    assert read_answer(PAIR, {"score": 0.49, "truncated": False}).chosen == "不相似"


def test_several_labels_are_scored_by_themselves() -> None:
    example = replace(TITLE, answers=(0, 1))
    assert request_of([example])[1]["multi_label"] is True
    scores = [{"label": "体育", "score": 0.9}, {"label": "财经", "score": 0.4}]
    result = {"label": "体育", "score": 0.9, "scores": scores, "truncated": False}
    assert read_answer(example, result).several == ("体育",)
    assert read_answer(example, result, Ask(threshold=0.4)).is_correct


def test_a_label_set_is_named_instead_of_the_labels() -> None:
    example = replace(REVIEW, options=())
    body = {"inputs": ["味道不错"], "label_set": "reviews"}
    assert request_of([example], Ask(label_set="reviews"))[1] == body
    assert request_of([example], Ask(label_set="reviews", is_undecided=True))[1] == body | {"min_score": 0}


def test_probabilities_are_in_the_order_of_the_options() -> None:
    scores = [{"label": "体育", "score": 0.9}, {"label": "财经", "score": 0.1}]
    result = {"label": "体育", "score": 0.9, "scores": scores, "truncated": False}
    assert read_answer(TITLE, result).probabilities() == [0.1, 0.9]
    assert read_answer(TITLE, result | {"scores": scores[:1]}).probabilities() is None
    assert read_answer(PAIR, {"score": 0.75, "truncated": False}).probabilities() == [0.25, 0.75]
    reading = {"answer": "超市", "score": 0.6, "scores": [0.4, 0.6], "truncated": False}
    assert read_answer(READING, reading).probabilities() == [0.4, 0.6]


def test_a_grade_is_compared_with_the_score_of_the_pair() -> None:
    graded = Example("similarity", ("甲", "乙"), (), -1, grade=4.0)
    assert read_answer(graded, {"score": 0.8, "truncated": False}).score == 0.8


def test_a_repeated_choice_is_correct_at_either_index() -> None:
    second = Example(READING.task, READING.texts, READING.options, 2, READING.question)
    assert read_answer(second, {"answer": "图书馆", "index": 0, "truncated": False}).is_correct


Handler = Callable[[httpx.Request], httpx.Response]
LABELS = ("差", "好")


def examples(num: int) -> list[Example]:
    return [Example("classify", (f"文本{index}",), LABELS, index % 2) for index in range(num)]


def problem(status: int, detail: str, field: str = "", **headers: str) -> httpx.Response:
    body = {"detail": detail, "errors": [{"field": field, "message": detail}] if field else []}
    return httpx.Response(status, json=body, headers={key.replace("_", "-"): value for key, value in headers.items()})


def answer(request: httpx.Request) -> httpx.Response:
    """A model that is always correct: 文本N is 好 when N is odd."""
    inputs = json.loads(request.content)["inputs"]
    results = [{"label": LABELS[int(text[2:]) % 2], "truncated": False} for text in inputs]
    return httpx.Response(200, json={"model": "fake", "results": results})


class Waits:
    """Replaces asyncio.sleep and records the waits."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def server(handler: Handler, waits: Waits | None = None, model: str | None = None) -> EvaluationClient:
    client = httpx.AsyncClient(transport=httpx.MockTransport(handler), base_url="http://server")
    return EvaluationClient(client, model, waits or Waits())


async def test_answers_are_in_order_and_progress_sums_to_the_total() -> None:
    steps: list[int] = []
    answers = await server(answer).evaluate(examples(50), steps.append)
    assert [one.example.texts[0] for one in answers] == [f"文本{index}" for index in range(50)]
    assert all(one.is_correct for one in answers)
    assert sum(steps) == 50


async def test_the_requested_model_is_sent_and_the_answering_one_recorded() -> None:
    bodies = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return answer(request)

    client = server(handler, model="mine")
    await client.evaluate(examples(1), id)
    assert bodies[0]["model"] == "mine"
    assert client.model == "fake"


async def test_the_method_the_models_and_the_tokens_of_the_replies_are_kept() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        more = {"method": "blend", "models": ["fake", "e5"], "usage": {"tokens": 7}}
        return httpx.Response(200, json=answer(request).json() | more)

    client = server(handler)
    await client.evaluate(examples(40), id)
    assert (client.method, client.models, client.tokens) == ("blend", ("fake", "e5"), 21)


async def test_the_served_models_are_none_for_a_key_that_may_not_see_them() -> None:
    reply = httpx.Response(200, json={"models": [{"name": "mini"}], "replicas": []})
    assert await server(lambda _: reply).served() == [{"name": "mini"}]
    assert await server(lambda _: problem(403, "no")).served() == []


async def test_a_busy_server_is_retried_after_its_retry_after() -> None:
    replies = [problem(429, "full", Retry_After="3"), problem(503, "starting", Retry_After="soon")]
    waits = Waits()
    answers = await server(lambda request: replies.pop(0) if replies else answer(request), waits).evaluate(
        examples(1), id
    )
    assert answers[0].is_correct
    assert waits.seconds == [3.0, 0.5]


async def test_a_server_that_stays_busy_is_an_error_after_max_attempts() -> None:
    waits = Waits()
    with pytest.raises(EvaluationError, match="answers 429: full"):
        await server(lambda _: problem(429, "full"), waits).evaluate(examples(1), id)
    assert len(waits.seconds) == MAX_ATTEMPTS


async def test_a_refused_input_does_not_fail_the_others() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if "文本3" in json.loads(request.content)["inputs"]:
            return problem(422, "inputs[0]: too long", "inputs[0]")
        return answer(request)

    answers = await server(handler).evaluate(examples(6), id)
    assert [one.is_correct for one in answers] == [True, True, True, False, True, True]
    assert (answers[3].chosen, answers[3].reason) == (None, "inputs[0]: too long")


@pytest.mark.parametrize("reply", [problem(404, "model: not served"), problem(422, "cannot do", "model")])
async def test_an_unsuitable_model_ends_the_evaluation(reply: httpx.Response) -> None:
    with pytest.raises(EvaluationError, match=r"/v1/classify answers 4"):
        await server(lambda _: reply).evaluate(examples(40), id)


async def test_a_refused_connection_is_not_retried() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    waits = Waits()
    with pytest.raises(EvaluationError, match="no server answers at http://server"):
        await server(handler, waits).evaluate(examples(100), id)
    assert waits.seconds == []


async def test_a_broken_connection_is_retried() -> None:
    failures = [httpx.RemoteProtocolError("gone")]

    def handler(request: httpx.Request) -> httpx.Response:
        if failures:
            raise failures.pop()
        return answer(request)

    assert (await server(handler).evaluate(examples(1), id))[0].is_correct


async def test_an_error_without_a_problem_document_is_reported_by_its_status() -> None:
    with pytest.raises(EvaluationError, match="answers 502: Bad Gateway"):
        await server(lambda _: httpx.Response(502, text="<html>")).evaluate(examples(1), id)


async def test_requests_in_flight_are_limited() -> None:
    class Gauge(httpx.AsyncBaseTransport):
        now = most = 0

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self.now += 1
            self.most = max(self.most, self.now)
            await waits(0)
            self.now -= 1
            return answer(request)

    waits, gauge = Waits(), Gauge()
    client = EvaluationClient(httpx.AsyncClient(transport=gauge, base_url="http://server"), None, waits)
    await client.evaluate(examples(1000), id)
    assert gauge.most <= IN_FLIGHT
