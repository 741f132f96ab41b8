"""Hugging Face Inference: requests of huggingface_hub, the task that each payload means, and the shape of the reply."""

from __future__ import annotations

from typing import Any

import pytest

from service.domain import Labels, Mean, Spans, TokenScores, TopTokens
from service.errors import QueueFull
from tests.contract.fakes import HIDDEN, FakeSubmit, running
from tests.contract.protocols import both, choice, classifier, embedder, reader, recorded

pytestmark = pytest.mark.anyio
REQUESTS = recorded("huggingface")


async def reply_to(name: str, *models: Any, path: str | None = None, **headers: str) -> Any:
    async with running(*(models or both())) as service:
        response = await REQUESTS[name].send(service, path, **headers)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("path", ["/", "/huggingface", "/huggingface/models/mini"])
async def test_the_client_reaches_a_model_at_the_root_the_prefix_and_by_name(path: str) -> None:
    assert [one["label"] for one in await reply_to("zero_shot", path=path)] == ["美食", "体育"]


async def test_sentence_similarity_is_one_number_per_sentence() -> None:
    assert await reply_to("sentence_similarity") == pytest.approx([1.0, 1.0])


async def test_sentence_similarity_without_an_embedding_model_is_that_of_the_task() -> None:
    scores = await reply_to("sentence_similarity", choice())
    assert len(scores) == 2
    assert all(0 <= score <= 1 for score in scores)


@pytest.mark.parametrize(
    ("agent", "is_list"),
    [
        ("unknown/None; hf_hub/2.4.0; python/3.11.7", True),
        ("unknown/None; hf_hub/1.2.0; python/3.11.7", True),
        ("unknown/None; hf_hub/1.1.9; python/3.11.7", False),
        ("unknown/None; hf_hub/0.34.4; python/3.11.7", False),
        ("curl/8.0", True),
    ],
)
async def test_the_version_of_the_client_decides_the_shape_of_a_zero_shot_reply(agent: str, is_list: bool) -> None:
    reply = await reply_to("zero_shot", **{"user-agent": agent})
    if is_list:
        assert [set(one) for one in reply] == [{"label", "score"}] * 2
    else:
        assert (reply["sequence"], reply["labels"]) == ("这家餐厅的菜很好吃", ["美食", "体育"])
        assert reply["scores"] == sorted(reply["scores"], reverse=True)


async def test_a_hypothesis_template_is_read_and_not_shown() -> None:
    assert {one["label"] for one in await reply_to("zero_shot_multi", choice())} == {"美食", "体育"}


async def test_fill_mask_has_token_id_and_sequence() -> None:
    best = (await reply_to("fill_mask"))[0]
    assert set(best) == {"score", "token", "token_str", "sequence"}
    assert best["sequence"] == f"北京是中国的首{best['token_str']}。"
    assert choice().token(best["token"]) == best["token_str"]


async def test_fill_mask_with_targets_has_only_those_with_scores_of_the_whole_vocabulary() -> None:
    found = await reply_to("fill_mask_targets")
    assert {one["token_str"] for one in found} == {"都", "府"}
    assert all(one["score"] < 0.5 for one in found)


async def test_several_masks_have_a_list_each() -> None:
    async with running() as service:
        response = await service.post("/huggingface", {"inputs": "[MASK]京[MASK]", "parameters": {"top_k": 1}})
    first, second = response.json()
    assert first[0]["sequence"].endswith("京[MASK]")
    assert second[0]["sequence"].startswith("[MASK]京")


async def test_feature_extraction_is_a_vector_for_a_text_and_a_list_for_a_list() -> None:
    assert len(await reply_to("feature_extraction")) == HIDDEN
    assert [len(one) for one in await reply_to("feature_extraction_many")] == [HIDDEN, HIDDEN]


async def test_feature_extraction_cuts_and_scales_again() -> None:
    assert await reply_to("feature_extraction_options") == pytest.approx([0.5] * 4)


async def test_text_classification_is_a_nested_list() -> None:
    assert [[one["label"] for one in each] for each in await reply_to("text_classification", classifier())] == [
        ["好", "差"]
    ]
    assert [len(each) for each in await reply_to("text_classification_top_k", classifier())] == [1]


async def test_question_answering_is_one_answer_or_a_list() -> None:
    answer = await reply_to("question_answering", reader())
    assert set(answer) == {"answer", "score", "start", "end"}
    assert "小王七点半去上班。"[answer["start"] : answer["end"]] == answer["answer"]
    assert len(await reply_to("question_answering_options", reader())) >= 2


@pytest.mark.parametrize(
    ("body", "readout"),
    [
        ({"inputs": {"source_sentence": "好", "sentences": ["吃"]}}, Mean),
        ({"inputs": {"question": "好", "context": "吃"}}, Spans),
        ({"inputs": "好", "parameters": {"candidate_labels": "好,差"}}, TokenScores),
        ({"inputs": "[MASK]好", "normalize": True}, Mean),
        ({"inputs": "[MASK]好"}, TopTokens),
        ({"inputs": ["[MASK]好"], "parameters": {}}, TopTokens),
        ({"inputs": "好", "parameters": {}}, Labels),
        ({"inputs": "好"}, Mean),
    ],
)
async def test_the_payload_decides_the_task(body: Any, readout: Any) -> None:
    async with running(*both(), classifier(), reader()) as service:
        response = await service.post("/huggingface", body)
        assert response.status_code == 200, response.text
        assert isinstance(service.submit.calls[0][0].readout, readout)


async def test_the_model_of_the_path_decides_where_the_payload_does_not() -> None:
    async with running(*both(), classifier()) as service:
        for model, expected in (("tuned", Labels), ("e5", Mean)):
            await service.post(f"/huggingface/models/{model}", {"inputs": "好"})
            assert isinstance(service.submit.calls[-1][0].readout, expected)
        await service.post("/huggingface/models/mini/pipeline/feature-extraction", {"inputs": "好[MASK]"})
        assert isinstance(service.submit.calls[-1][0].readout, Mean)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({}, "the body fits no protocol that shares /huggingface; wanted huggingface"),
        (
            {"inputs": "好", "parameters": {"candidate_labels": ["好", "好"]}},
            "parameters.candidate_labels: entry 1 repeats",
        ),
        (
            {"inputs": "好", "parameters": {"candidate_labels": ["好"], "hypothesis_template": "x"}},
            "must have {} in the place",
        ),
        ({"inputs": "好", "normalize": True, "nonsense": 1}, "nonsense: unknown field"),
        ({"inputs": "好", "parameters": {"function_to_apply": "sigmoid"}}, "are made by softmax"),
        ({"inputs": "[MASK]", "parameters": {"targets": ["\u200b"]}}, "parameters.targets[0]: has no token"),
        ({"inputs": "好", "dimensions": 99}, "dimensions: is 99; the vectors of this model have 8"),
        ({"inputs": "好" * 600, "truncate": False}, "takes at least 600 tokens"),
    ],
)
async def test_an_error_is_one_string_with_its_code(body: Any, detail: str) -> None:
    async with running(choice(), classifier(), embedder()) as service:
        response = await service.post("/huggingface", body)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert detail in response.json()["error"]


async def test_a_refusal_keeps_status_and_retry_after() -> None:
    async with running(submit=FakeSubmit(error=QueueFull("full", retry_after_s=1.5))) as service:
        response = await service.post("/", {"inputs": "好"})
    assert (response.status_code, response.json()["error"], response.json()["code"]) == (429, "full", "queue_full")
    assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("2", "1500")
