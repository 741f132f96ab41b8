"""Predictions are counted by label; labels of requests never become labels of a metric."""

from __future__ import annotations

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
        await service.post("/v1/mrc", {"inputs": [{"passage": "好", "question": "好", "choices": ["甲", "乙"]}]})
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
