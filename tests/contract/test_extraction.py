"""Reading comprehension without choices, over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.api.openapi import EXAMPLES
from tests.contract.fakes import Service, running, text_model

READING = {"passage": "他七点上班", "question": "几点"}
CHOICES = {"choices": ["六点", "七点"]}
FIELDS = ["answer", "start", "end", "score", "no_answer_score", "candidates", "windows", "tokens", "truncated"]


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with running(text_model(), text_model("reader", "question-answering")) as service:
        yield service


async def ask(service: Service, *inputs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    response = await service.post("/v1/mrc", {"inputs": list(inputs), **fields})
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


async def error(service: Service, *inputs: dict[str, Any], **fields: Any) -> tuple[str, str]:
    response = await service.post("/v1/mrc", {"inputs": list(inputs), **fields})
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    [one] = response.json()["errors"]
    return one["field"], one["message"]


async def test_a_question_answering_model_answers_the_documented_example(service: Service) -> None:
    body = EXAMPLES["mrc"].requests["span"]
    reply = (await service.post("/v1/mrc", body)).json()
    assert (reply["model"], reply["task"], reply["usage"]) == (
        "reader",
        "mrc",
        {"tokens": reply["results"][0]["tokens"]},
    )
    [result] = reply["results"]
    assert list(result) == FIELDS
    # The logits of the fake rise, so the last token is the best answer.
    passage = body["inputs"][0]["passage"]
    assert (result["answer"], result["start"], result["end"]) == ("。", len(passage) - 1, len(passage))
    assert [list(each) for each in result["candidates"]] == [["answer", "start", "end", "score"]] * body["top_k"]
    assert result["candidates"][0]["score"] == result["score"] > result["candidates"][1]["score"]


async def test_the_choices_decide_which_model_answers(service: Service) -> None:
    assert (await ask(service, READING))["model"] == "reader"
    assert (await ask(service, READING | CHOICES))["model"] == "mini"
    assert (await ask(service, READING | {"choices": None}))["model"] == "reader"


async def test_no_answer_is_null_with_the_score_of_no_answer(service: Service) -> None:
    [result] = (await ask(service, READING, null_threshold=-1000))["results"]
    assert (result["answer"], result["start"], result["end"]) == (None, None, None)
    assert result["score"] == result["no_answer_score"] < result["candidates"][0]["score"]
    [strict] = (await ask(service, READING, min_score=1))["results"]
    assert (strict["answer"], strict["candidates"]) == (None, [])


async def test_null_is_the_default_of_every_option(service: Service) -> None:
    names = ("top_k", "max_answer_tokens", "stride", "null_threshold", "min_score")
    assert await ask(service, READING, **dict.fromkeys(names)) == await ask(service, READING)


async def test_a_long_passage_is_one_input_of_several_rows(service: Service) -> None:
    passage = "他七点上班" * 200
    [first, second] = (reply := await ask(service, READING | {"passage": passage}, READING))["results"]
    assert (first["windows"], second["windows"]) == (3, 1)
    assert first["answer"] == passage[first["start"] : first["end"]]
    assert not first["truncated"]
    assert reply["usage"]["tokens"] == first["tokens"] + second["tokens"] > 1000
    value = service.metrics.registry.get_sample_value
    series = {"task": "mrc", "model": "reader"}
    assert value("erlangshen_inputs_total", series) == 2
    assert value("erlangshen_input_tokens_total", series) == reply["usage"]["tokens"]
    assert value("erlangshen_request_inputs_sum", {"task": "mrc"}) == 2
    assert value("erlangshen_predictions_total", {**series, "label": "answer"}) == 2
    field, message = await error(service, READING, READING | {"passage": passage}, truncation="error")
    assert (field, message.split(";")[1]) == ("inputs[1].passage", " at most 507 fit next to its question")


async def test_too_many_windows_are_refused(service: Service) -> None:
    long = READING | {"passage": "他七点上班" * 20_000}
    field, message = await error(service, long, long)
    assert field == "inputs[0].passage"
    assert message.startswith(
        "takes more than the 255 windows of 507 tokens that are left of the 256 of a request; send"
    )


@pytest.mark.parametrize(
    ("inputs", "fields", "field", "words"),
    [
        ([READING, READING | CHOICES], {}, "inputs[1].choices", "is there, but inputs[0] has none; send"),
        ([READING | CHOICES, READING], {}, "inputs[1].choices", "is missing, but inputs[0] has choices; send"),
        ([READING | CHOICES], {"top_k": 2}, "top_k", "cannot be combined with choices"),
        ([READING | CHOICES], {"min_score": 0}, "min_score", "cannot be combined with choices"),
        ([READING], {"top_k": 0}, "top_k", "must be at least 1"),
        ([READING], {"top_k": 101}, "top_k", "must be at most 100"),
        ([READING], {"max_answer_tokens": 257}, "max_answer_tokens", "must be at most 256"),
        ([READING], {"stride": -1}, "stride", "must be at least 0"),
        ([READING], {"null_threshold": "0"}, "null_threshold", "number"),
        ([READING], {"min_score": 1.5}, "min_score", "must be at most 1"),
        (
            [READING | CHOICES],
            {"model": "reader"},
            "model",
            "reader (question-answering) cannot do this; mrc needs a mask",
        ),
        (
            [READING],
            {"model": "mini"},
            "model",
            "or a question-answering model (a checkpoint with `qa_outputs`) and no",
        ),
    ],
)
async def test_an_error_names_the_field(
    service: Service, inputs: list[dict[str, Any]], fields: dict[str, Any], field: str, words: str
) -> None:
    found, message = await error(service, *inputs, **fields)
    assert found == field
    assert words in message


async def test_the_error_without_a_model_that_can_names_what_is_needed() -> None:
    async with running() as service:
        field, message = await error(service, READING)
    assert field == "inputs[0].choices"
    assert message.startswith(
        "missing, and without it no served model can do this; mrc needs a masked LM (UniMC) and `choices` in every "
        "input, or"
    )
