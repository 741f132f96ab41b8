"""The six POST routes: every form of their bodies, the shape and order of the results, deadlines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import TypeAdapter

from service.api.openapi import EXAMPLES
from service.api.protocols.native import ROUTES
from service.domain import Encoding
from service.settings import Server
from service.tasks.registry import TASKS
from tests.contract.fakes import HIDDEN, FakeSubmit, Service, running, text_model


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with running() as service:
        yield service


def all_examples() -> list[Any]:
    """Those that a masked LM answers; test_extraction.py has the others."""
    return [
        pytest.param(task, body, id=f"{task}-{title}")
        for task, example in EXAMPLES.items()
        for title, body in example.requests.items()
        if title != "span"
    ]


@pytest.mark.parametrize(("task", "body"), all_examples())
async def test_a_documented_example_has_the_documented_response_shape(
    service: Service, task: str, body: dict[str, Any]
) -> None:
    response = await service.post(f"/v1/{task}", body)
    assert response.status_code == 200
    reply = response.json()
    by = ["method", "models"] if task in ("classify", "similarity") else []
    assert list(reply) == ["model", "task", *by, "results", "usage"]
    assert (reply["model"], reply["task"]) == ("mini", task)
    assert reply["usage"]["tokens"] == sum(result["tokens"] for result in reply["results"]) > 0
    route = next(route for route in ROUTES if route.task == task)
    TypeAdapter(route.reply).validate_python(reply)
    documented = EXAMPLES[task].reply
    in_windows = {"window"} if body.get("truncation") == "window" else set()
    assert reply["results"][0].keys() == documented["results"][0].keys() | in_windows
    if body is next(iter(EXAMPLES[task].requests.values())):
        assert [one["tokens"] for one in reply["results"]] == [one["tokens"] for one in documented["results"]]


def test_every_task_has_a_route_and_an_example() -> None:
    assert [route.task for route in ROUTES] == list(TASKS) == list(EXAMPLES)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ("好吃", 1),
        (["好吃"], 1),
        (["好吃", "难吃", "一般"], 3),
        ([{"text": "好吃"}, "难吃"], 2),
        ([{"text": "好吃", "text_pair": "很好吃"}], 1),
    ],
)
async def test_classify_accepts_a_text_texts_and_pairs(service: Service, inputs: Any, expected: int) -> None:
    response = await service.post("/v1/classify", {"inputs": inputs, "labels": ["好评", "差评"]})
    assert len(response.json()["results"]) == expected


async def test_classify_returns_the_top_k_scores_best_first(service: Service) -> None:
    response = await service.post("/v1/classify", {"inputs": "好吃", "labels": ["好", "评", "差"], "top_k": 2})
    result = response.json()["results"][0]
    assert [score["label"] for score in result["scores"]] == ["好", "评"]
    assert result["label"] == "好"
    assert result["score"] == result["scores"][0]["score"] > result["scores"][1]["score"]


async def test_a_single_label_or_choice_is_scored_by_itself(service: Service) -> None:
    # The fake outputs are equal for yes and no.
    result = (await service.post("/v1/classify", {"inputs": "好吃", "labels": ["好评"]})).json()["results"][0]
    assert (result["score"], result["scores"]) == (0.5, [{"label": "好评", "score": 0.5}])
    body = {"inputs": [{"passage": "好吃", "question": "好吗", "choices": ["好"]}]}
    result = (await service.post("/v1/mrc", body)).json()["results"][0]
    assert (result["answer"], result["score"], result["scores"]) == ("好", 0.5, [0.5])


async def test_classify_without_labels_is_answered_by_a_fine_tuned_model() -> None:
    tuned = text_model("tuned", "sequence-classification", ("负面", "正面"))
    async with running(text_model(), tuned) as service:
        reply = (await service.post("/v1/classify", {"inputs": "好吃"})).json()
    assert reply["model"] == "tuned"
    assert [score["label"] for score in reply["results"][0]["scores"]] == ["负面", "正面"]


async def test_the_model_of_the_request_answers() -> None:
    async with running(text_model("first"), text_model("second")) as service:
        reply = (await service.post("/v1/embed", {"inputs": "好吃", "model": "second"})).json()
    assert reply["model"] == "second"


async def test_similarity_compares_the_source_with_every_candidate(service: Service) -> None:
    pairs = {"inputs": [["手机号", "号"], ["手机号", "手机"]]}
    candidates = {"source": "手机号", "candidates": ["号", "手机"]}
    first, second = [(await service.post("/v1/similarity", body)).json() for body in (pairs, candidates)]
    assert first == second
    assert all(0 <= result["score"] <= 1 for result in first["results"])


async def test_mrc_returns_the_choice_and_its_index(service: Service) -> None:
    body = {"inputs": [{"passage": "他七点上班", "question": "几点", "choices": ["好点", "差点"]}]}
    result = (await service.post("/v1/mrc", body)).json()["results"][0]
    assert (result["answer"], result["index"]) == ("好点", 0)
    assert sum(result["scores"]) == pytest.approx(1)


async def test_fill_mask_returns_tokens_for_every_mask(service: Service) -> None:
    reply = (await service.post("/v1/fill-mask", {"inputs": "北[MASK]是中国的[MASK]都", "top_k": 3})).json()
    assert [len(tokens) for tokens in reply["results"][0]["masks"]] == [3, 3]


async def test_embed_normalises_unless_normalize_is_false(service: Service) -> None:
    unit = (await service.post("/v1/embed", {"inputs": ["好吃"]})).json()["results"][0]["embedding"]
    raw = (await service.post("/v1/embed", {"inputs": ["好吃"], "normalize": False, "pooling": "cls"})).json()
    assert sum(x * x for x in unit) == pytest.approx(1)
    assert raw["results"][0]["embedding"] == [2.0] * HIDDEN


async def test_server_timing_has_the_time_of_each_stage(service: Service) -> None:
    response = await service.post("/v1/embed", {"inputs": "好吃"})
    parts = dict(part.strip().split(";dur=") for part in response.headers["server-timing"].split(","))
    assert list(parts) == ["tokenize", "queue", "compute"]
    assert (parts["queue"], parts["compute"]) == ("2.000", "30.000")


@pytest.mark.parametrize(
    "text",
    [
        "😀👍🏽",
        "這家餐廳的菜很好吃",
        "a\x00b\x07c",
        "[CLS] [SEP] [MASK] [PAD]",
        "\u200b\ufeff",
        "é\u0301",
        "𠀀𪚥",
        "好" * 5000,
    ],
    ids=["emoji", "traditional", "control", "special-tokens", "invisible", "combining", "rare", "long"],
)
@pytest.mark.parametrize("task", ["classify", "similarity", "mrc", "nli", "embed"])
async def test_any_unicode_text_is_accepted(service: Service, task: str, text: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "classify": {"inputs": text, "labels": ["好", "差"]},
        "similarity": {"inputs": [[text, "好"]]},
        "mrc": {"inputs": [{"passage": text, "question": "好吗", "choices": ["好", "差"]}]},
        "nli": {"inputs": [[text, "好"]]},
        "embed": {"inputs": [text]},
    }
    response = await service.post(f"/v1/{task}", bodies[task])
    assert response.status_code == 200
    assert response.json()["results"][0]["truncated"] is (len(text) > 512)


async def test_special_tokens_in_a_text_do_not_change_the_row_structure(service: Service) -> None:
    await service.post("/v1/embed", {"inputs": ["[SEP] [MASK] [CLS]"]})
    row: Encoding = service.submit.calls[0][0]
    model = text_model()
    ids = row.ids.tolist()
    assert (ids.count(model.cls), ids.count(model.sep), ids.count(model.mask)) == (1, 1, 0)


async def test_results_are_in_the_order_of_the_inputs(service: Service) -> None:
    inputs = ["好" * length for length in (9, 1, 30, 4)]
    results = (await service.post("/v1/embed", {"inputs": inputs})).json()["results"]
    assert [result["tokens"] for result in results] == [11, 3, 32, 6]


async def test_the_deadline_is_the_shorter_of_body_and_header_or_the_default() -> None:
    settings = Server(default_timeout_ms=7000, max_timeout_ms=9000)
    async with running(settings=settings, clock=lambda: 100.0, submit=FakeSubmit()) as service:
        await service.post("/v1/embed", {"inputs": "好"})
        await service.post("/v1/embed", {"inputs": "好", "timeout_ms": 3000})
        await service.post("/v1/embed", {"inputs": "好", "timeout_ms": 3000}, **{"X-Request-Timeout-Ms": "2000"})
        await service.post("/v1/embed", {"inputs": "好"}, **{"X-Request-Timeout-Ms": "4000"})
    assert [options.deadline for options in service.submit.options] == [107.0, 103.0, 102.0, 104.0]


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", None])
async def test_the_content_type_does_not_matter(service: Service, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    response = await service.client.post("/v1/embed", content=b'{"inputs": "\\u597d"}', headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize(("num_masks", "top_k"), [(1, 1), (1, 60), (400, 2), (100, 60)])
async def test_a_large_reply_is_the_same_json_as_a_small_one(num_masks: int, top_k: int) -> None:
    """Above INLINE_REPLY_BYTES it is written in slices, in a thread."""
    text = "[MASK]" * num_masks
    async with running() as service:
        reply = await service.post("/v1/fill-mask", {"inputs": [text, text], "top_k": top_k})
        assert reply.status_code == 200
        first, second = reply.json()["results"]
        assert first == second
        assert [len(mask) for mask in first["masks"]] == [top_k] * num_masks
        (single,) = (await service.post("/v1/fill-mask", {"inputs": "[MASK]", "top_k": top_k})).json()["results"]
        assert first["masks"] == single["masks"] * num_masks
