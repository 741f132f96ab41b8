"""Long texts over HTTP: windows, what the reply says of them, what they cost, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.api.accounts import Key, hash_of
from service.settings import Server
from tests.contract.fakes import Service, running, served_by_both, text_model
from tests.fakes import FakeClock, value

pytestmark = pytest.mark.anyio
LONG = "这家餐厅的菜很好吃" * 100
LABELS = ["体育", "财经"]
READING = {"passage": LONG, "question": "几点", "choices": ["六点", "七点"]}
REQUESTS: dict[str, dict[str, Any]] = {
    "classify": {"inputs": [LONG, "吃"], "labels": LABELS},
    "mrc": {"inputs": [READING, READING | {"passage": "吃"}]},
    "embed": {"inputs": [LONG, "吃"]},
}
SHORT: dict[str, dict[str, Any]] = {
    "similarity": {"inputs": [["吃", "好吃"]]},
    "nli": {"inputs": [["吃", "好吃"]]},
    "fill-mask": {"inputs": "好[MASK]"},
}


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with running() as service:
        yield service


async def ask(service: Service, task: str, **fields: Any) -> dict[str, Any]:
    response = await service.post(f"/v1/{task}", REQUESTS[task] | fields)
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


async def error(service: Service, task: str, body: dict[str, Any]) -> tuple[str, str]:
    response = await service.post(f"/v1/{task}", body)
    assert response.status_code == 422, response.text
    [one] = response.json()["errors"]
    return one["field"], one["message"]


@pytest.mark.parametrize("task", REQUESTS)
async def test_a_result_names_its_window_and_counts_the_tokens_of_all(service: Service, task: str) -> None:
    reply = await ask(service, task, truncation="window", stride=10)
    [rows] = service.submit.calls
    assert len(rows) > 2
    long, short = reply["results"]
    assert (long["truncated"], short["truncated"]) == (False, False)
    assert list(long["window"]) == ["index", "start", "end", "of"]
    assert long["window"]["of"] == len(rows) - 1
    assert short["window"] == {"index": 0, "start": 0, "end": 1, "of": 1}
    assert long["tokens"] == sum(row.num_tokens for row in rows[:-1])
    assert reply["usage"]["tokens"] == long["tokens"] + short["tokens"]
    assert value(service.metrics, "inputs_total", task=task, model="mini") == 2
    assert value(service.metrics, "request_inputs_sum", task=task) == 2
    assert value(service.metrics, "input_tokens_total", task=task, model="mini") == reply["usage"]["tokens"]
    assert value(service.metrics, "truncated_inputs_total", task=task) == 0


async def test_a_decision_has_the_characters_of_one_window_and_a_vector_those_of_all(service: Service) -> None:
    [decided, _] = (await ask(service, "classify", truncation="window"))["results"]
    assert decided["window"] == {"index": 0, "start": 0, "end": 503, "of": 2}
    [pooled, _] = (await ask(service, "embed", truncation="window"))["results"]
    assert pooled["window"] == {"index": None, "start": 0, "end": len(LONG), "of": 2}


@pytest.mark.parametrize("task", REQUESTS)
@pytest.mark.parametrize("truncation", ["right", "left", "head_tail"])
async def test_without_windows_a_result_has_none(service: Service, task: str, truncation: str) -> None:
    [long, short] = (await ask(service, task, truncation=truncation))["results"]
    assert (long["truncated"], short["truncated"]) == (True, False)
    assert "window" not in long


@pytest.mark.parametrize("task", REQUESTS)
async def test_only_the_first_window_is_read_on_request_and_the_text_counts_as_cut(service: Service, task: str) -> None:
    [long, short] = (await ask(service, task, truncation="window", window_pooling="first"))["results"]
    assert (long["truncated"], short["truncated"]) == (True, False)
    assert (long["window"]["index"], long["window"]["start"], long["window"]["of"]) == (0, 0, 1)
    assert [len(rows) for rows in service.submit.calls] == [2]
    assert value(service.metrics, "truncated_inputs_total", task=task) == 1


@pytest.mark.parametrize(
    ("fields", "method"), [({}, "blend"), ({"method": "choice"}, "choice"), ({"model": "e5"}, "embedding")]
)
async def test_every_method_reads_windows(fields: dict[str, Any], method: str) -> None:
    async with running(*served_by_both()) as service:
        reply = await ask(service, "classify", truncation="window", **fields)
        assert reply["method"] == method
        [long, short] = reply["results"]
        assert (long["window"]["of"], short["window"]["of"], long["truncated"]) == (2, 1, False)
        [rows] = service.submit.calls
        of_inputs = [row.num_tokens for row in rows if row.kept_as is None]
        assert reply["usage"]["tokens"] == long["tokens"] + short["tokens"] == sum(of_inputs)


async def test_a_fine_tuned_head_reads_windows() -> None:
    async with running(text_model("tuned", "sequence-classification", ("负面", "正面"))) as service:
        body = {"inputs": [{"text": LONG, "text_pair": "好吃"}], "truncation": "window"}
        response = await service.post("/v1/classify", body)
        [result] = response.json()["results"]
        assert (result["window"]["of"], result["truncated"]) == (2, False)


async def test_a_label_set_may_be_used_with_windows_and_a_top_k(service: Service) -> None:
    [long, _] = (await ask(service, "classify", truncation="window", top_k=1))["results"]
    assert [each["label"] for each in long["scores"]] == [long["label"]]


@pytest.mark.parametrize("task", REQUESTS)
async def test_too_many_windows_are_refused_with_the_limit_and_the_way_out(task: str) -> None:
    async with running(settings=Server(max_windows=2)) as service:
        body = REQUESTS[task] | {"truncation": "window", "stride": 0}
        field, message = await error(service, task, body)
        path = {"classify": "inputs[0].text", "mrc": "inputs[0].passage", "embed": "inputs[0]"}[task]
        assert field == path
        assert message.startswith("takes more than the 1 windows that are left of the 2 of a request; send fewer or ")
        assert service.submit.calls == []
        inputs = [body["inputs"][0]]
        assert (await service.post(f"/v1/{task}", body | {"inputs": inputs})).status_code == 200


async def test_the_same_limit_holds_for_the_windows_of_spans() -> None:
    async with running(text_model("reader", "question-answering"), settings=Server(max_windows=2)) as service:
        body = {"inputs": [{"passage": LONG, "question": "几点"}], "truncation": "window", "stride": 0}
        [result] = (await service.post("/v1/mrc", body)).json()["results"]
        assert (result["windows"], result["truncated"]) == (2, False)
        field, message = await error(service, "mrc", body | {"stride": 200})
        assert (field, "of the 2 of a request" in message) == ("inputs[0].passage", True)


async def test_windows_are_charged_to_the_key() -> None:
    keys = {"app": Key(hash=hash_of("secret"), tokens_per_s=10)}
    async with running(keys=keys, clock=FakeClock()) as service:
        headers = {"Authorization": "Bearer secret"}
        body = REQUESTS["embed"] | {"truncation": "window"}
        reply = (await service.post("/v1/embed", body, **headers)).json()
        [long, _] = reply["results"]
        assert long["window"]["of"] == 2
        assert long["tokens"] > 512
        assert value(service.metrics, "key_tokens_total", key="app") == reply["usage"]["tokens"]
        assert (await service.post("/v1/embed", body, **headers)).json()["code"] == "rate_limited"


@pytest.mark.parametrize("task", SHORT)
async def test_other_tasks_name_the_truncations_that_they_take(service: Service, task: str) -> None:
    assert await error(service, task, SHORT[task] | {"truncation": "window"}) == (
        "truncation",
        "must be 'right', 'left', 'head_tail' or 'error'",
    )
    assert (await service.post(f"/v1/{task}", SHORT[task] | {"truncation": "head_tail"})).status_code == 200


@pytest.mark.parametrize("task", REQUESTS)
@pytest.mark.parametrize(("name", "given"), [("stride", 10), ("window_pooling", "max")])
async def test_the_options_of_windows_require_windows(service: Service, task: str, name: str, given: Any) -> None:
    assert await error(service, task, REQUESTS[task] | {name: given}) == (name, "requires truncation window")


async def test_spans_have_no_pooling() -> None:
    async with running(text_model("reader", "question-answering")) as service:
        body = {"inputs": [{"passage": LONG, "question": "几点"}], "truncation": "window", "window_pooling": "max"}
        assert await error(service, "mrc", body) == ("window_pooling", "requires choices")
