"""Predictions are counted by label; labels of requests never become labels of a metric."""

from __future__ import annotations

import pytest

from tests.contract.fakes import Service, running, text_model


def predictions(service: Service) -> dict[tuple[str, ...], float]:
    """The non-zero prediction counts by (task, model, label)."""
    return {
        (sample.labels["task"], sample.labels["model"], sample.labels["label"]): sample.value
        for family in service.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "erlangshen_predictions_total" and sample.value
    }


async def test_labels_of_requests_are_counted_as_other() -> None:
    async with running() as service:
        await service.post("/v1/classify", {"inputs": ["好吃", "很好"], "labels": ["私事", "公事"]})
        await service.post("/v1/mrc", {"inputs": [{"passage": "好", "question": "好", "choices": ["好", "差"]}]})
        await service.post("/v1/nli", {"inputs": [["好", "很好"]]})
        await service.post("/v1/embed", {"inputs": "好"})
        assert predictions(service) == {
            ("classify", "mini", "other"): 2,
            ("mrc", "mini", "other"): 1,
            ("nli", "mini", "contradiction"): 1,
        }
        assert "私" not in (await service.client.get("/metrics")).text


async def test_labels_of_a_fine_tuned_model_are_counted_by_name() -> None:
    tuned = text_model("tuned", "sequence-classification", ("负面", "正面"))
    async with running(tuned) as service:
        await service.post("/v1/classify", {"inputs": ["好吃", "很好"]})
        assert predictions(service) == {("classify", "tuned", "负面"): 2}
        scored = service.metrics.registry.get_sample_value(
            "erlangshen_prediction_score_sum", {"task": "classify", "model": "tuned"}
        )
    assert scored is not None
    assert 1.0 < scored < 2.0


async def test_a_multi_label_head_counts_its_best_label() -> None:
    tuned = text_model("tuned", "sequence-classification", ("体育", "财经"), activation="sigmoid")
    async with running(tuned) as service:
        reply = (await service.post("/v1/classify", {"inputs": ["好吃"]})).json()
        assert predictions(service) == {("classify", "tuned", "体育"): 1}
    scores = {one["label"]: one["score"] for one in reply["results"][0]["scores"]}
    assert scores == pytest.approx({"体育": 0.5, "财经": 0.2689414})


async def test_a_regression_is_answered_and_counts_no_prediction() -> None:
    tuned = text_model("tuned", "sequence-classification", activation="identity")
    async with running(tuned) as service:
        reply = (await service.post("/v1/classify", {"inputs": ["好吃"]})).json()
        assert predictions(service) == {}
        page = (await service.client.get("/metrics")).text
    assert [one["score"] for one in reply["results"][0]["scores"]] == [0, -1]
    assert "erlangshen_prediction_score_sum{" not in page


async def test_a_source_is_accepted_as_model_and_the_name_is_reported() -> None:
    async with running(text_model("mine", source="IDEA-CCNL/Erlangshen")) as service:
        body = {"inputs": "好吃", "labels": ["好", "差"], "model": "IDEA-CCNL/Erlangshen"}
        assert (await service.post("/v1/classify", body)).json()["model"] == "mine"
        assert (await service.post("/v1/mrc", body | {"inputs": []})).status_code == 422
        page = (await service.client.get("/metrics")).text
    assert 'model="mine"' in page
    assert "IDEA-CCNL" not in page
