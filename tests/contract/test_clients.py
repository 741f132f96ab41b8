"""The service's own clients, `evaluate` and `bench`, send requests that the application accepts."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from service.tools.bench.load import BODIES, requests_of
from service.tools.bench.texts import Corpus, Reading
from service.tools.data.converters import Example
from service.tools.evaluation import Ask, EvaluationClient
from tests.contract.fakes import running, text_model

EXAMPLES = [
    Example("classify", ("这家餐厅的菜很好吃",), ("差评", "好评"), 1),
    Example("classify", ("国足出战",), ("财经", "体育"), 1, "下面新闻属于哪一个类别？"),
    Example("classify", ("他有手机", "他没有手机"), ("一", "二"), 0),
    Example("similarity", ("怎么更换手机号", "如何修改手机号"), ("不相似", "相似"), 1),
    Example("nli", ("男人在弹吉他", "有人在演奏"), ("contradiction", "neutral", "entailment"), 2),
    Example("mrc", ("男人在公园里弹吉他。",), ("吉他", "乐器", "吉他"), 0, "他弹什么？"),
]


async def test_every_kind_of_example_gets_one_of_its_options() -> None:
    async with running() as service:
        answers = await EvaluationClient(service.client).evaluate(EXAMPLES, id)
    assert [one.example for one in answers] == EXAMPLES
    assert all(one.chosen in one.example.options for one in answers)


async def test_a_fine_tuned_model_answers_with_its_own_labels() -> None:
    async with running(text_model("mine", "sequence-classification", labels=("差评", "好评"))) as service:
        server = EvaluationClient(service.client)
        (answers,) = await server.evaluate(EXAMPLES[:1], id, Ask(head=True))
    assert (answers.chosen, server.model) == ("差评", "mine")


@pytest.mark.parametrize("task", BODIES)
async def test_the_requests_of_every_bench_task_are_accepted(task: str) -> None:
    corpus = Corpus(
        "", ["这家餐厅的菜很好吃", "怎么更换手机号"], [Reading("男人在弹吉他。", "他弹什么？", ("吉他", "乐器"))]
    )
    models = [text_model(), text_model("head", "sequence-classification", labels=("差评", "好评"))]
    async with running(*models) as service:
        for request in islice(requests_of(corpus, task, 2, None, random.Random(1)), 5):
            reply = await service.client.post(request.path, content=request.body)
            assert reply.status_code == 200, reply.text
            assert len(reply.json()["results"]) == 2
            assert reply.json()["usage"]["tokens"] > 0
