"""`method` of classify and similarity over HTTP: which models take part, and what the reply and the metrics say."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.fakes import CHARACTERS, running, served_by_both
from tests.fakes import value

pytestmark = pytest.mark.anyio
CLASSIFY = {"inputs": ["餐厅", "电池"], "labels": ["体育", "财经", "娱乐"]}
SIMILARITY = {"source": "餐厅", "candidates": ["电池", "电影"]}


@pytest.mark.parametrize(
    ("changes", "method", "took_part"),
    [
        ({}, "blend", ["mini", "e5"]),
        ({"method": "auto"}, "blend", ["mini", "e5"]),
        ({"method": "choice"}, "choice", ["mini"]),
        ({"method": "embedding"}, "embedding", ["e5"]),
        ({"model": "mini"}, "choice", ["mini"]),
        ({"model": "e5"}, "embedding", ["e5"]),
        ({"model": "e5", "method": "embedding"}, "embedding", ["e5"]),
    ],
)
@pytest.mark.parametrize(("task", "body"), [("classify", CLASSIFY), ("similarity", SIMILARITY)])
async def test_the_reply_and_the_metrics_say_what_answered(
    task: str, body: dict[str, Any], changes: dict[str, Any], method: str, took_part: list[str]
) -> None:
    async with running(*served_by_both()) as service:
        response = await service.post(f"/v1/{task}", body | changes)
        assert response.status_code == 200, response.text
        reply = response.json()
        assert (reply["method"], reply["models"], reply["model"]) == (method, took_part, took_part[0])
        assert len(reply["results"]) == 2
        [rows] = service.submit.calls
        of_inputs = sum(row.num_tokens for row in rows if row.kept_as is None)
        assert reply["usage"]["tokens"] == sum(result["tokens"] for result in reply["results"]) == of_inputs
        assert value(service.metrics, "requests_by_method_total", task=task, method=method) == 1
        assert value(service.metrics, "inputs_total", task=task, model=took_part[0]) == 2
        assert value(service.metrics, "request_inputs_sum", task=task) == 2
        counted = [value(service.metrics, "input_tokens_total", task=task, model=name) for name in ("mini", "e5")]
        assert sum(counted) == sum(row.num_tokens for row in rows)


@pytest.mark.parametrize(
    ("with_choice", "method", "message"),
    [
        (True, "embedding", "no served model can do this; classify needs an embedding model, such as --model e5-small"),
        (False, "choice", "no served model can do this; classify needs a masked LM (UniMC), such as --model mini"),
    ],
)
async def test_a_method_without_its_model_is_422(with_choice: bool, method: str, message: str) -> None:
    async with running(*served_by_both(with_choice=with_choice, with_embedding=not with_choice)) as service:
        response = await service.post("/v1/classify", CLASSIFY | {"method": method})
    assert (response.status_code, response.json()["errors"]) == (422, [{"field": "method", "message": message}])


async def test_a_method_without_labels_or_of_another_name_is_422() -> None:
    async with running(*served_by_both()) as service:
        without = await service.post("/v1/classify", {"inputs": "餐厅", "method": "choice"})
        unknown = await service.post("/v1/classify", CLASSIFY | {"method": "both"})
    assert without.json()["errors"] == [{"field": "method", "message": "requires labels"}]
    assert (unknown.status_code, unknown.json()["errors"][0]["field"]) == (422, "method")


async def test_an_embedding_model_alone_answers_labels() -> None:
    async with running(*served_by_both(with_choice=False)) as service:
        reply = (await service.post("/v1/classify", CLASSIFY | {"multi_label": True, "top_k": 1})).json()
    assert (reply["method"], [len(result["scores"]) for result in reply["results"]]) == ("embedding", [1, 1])


async def test_of_many_labels_the_choice_reads_a_shortlist() -> None:
    labels = [first + second for first in CHARACTERS[:16] for second in CHARACTERS[:16]]
    async with running(*served_by_both()) as service:
        reply = (await service.post("/v1/classify", CLASSIFY | {"labels": labels})).json()
        first, second = service.submit.calls
        assert value(service.metrics, "requests_by_method_total", task="classify", method="blend") == 1
        assert value(service.metrics, "input_tokens_total", task="classify", model="mini") == sum(
            row.num_tokens for row in second
        )
    assert (reply["method"], reply["models"], reply["model"]) == ("blend", ["mini", "e5"], "mini")
    assert ({row.model for row in first}, {row.model for row in second}) == ({"e5"}, {"mini"})
    assert [len(row.blocks) for row in second] == [32, 32]
    assert [len(result["scores"]) for result in reply["results"]] == [20, 20]
    of_inputs = sum(row.num_tokens for row in (*first, *second) if row.kept_as is None)
    of_labels = sum(row.num_tokens for row in first if row.kept_as is not None)
    assert reply["usage"] == {"tokens": of_inputs, "label_tokens": of_labels}
