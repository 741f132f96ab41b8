"""Decisions and calibrated scores over HTTP: fields of requests and stored label sets, replies, and metrics.

The fake scores of two labels are 0.731 and 0.269, the probabilities of the logits 0 and -1.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from service.api.schemas import LabelSetBody
from service.settings import Server
from service.stores.label_sets import LabelSets
from service.tasks.calibration import Calibration, Entry, label_digest
from tests.contract.fakes import Service, running, text_model
from tests.fakes import value

ONE = "/v1/label-sets/客服"
LABELS = ["体育", "财经"]
BODY: dict[str, Any] = {"inputs": ["好吃"], "labels": LABELS}


def store(folder: Path) -> LabelSets[LabelSetBody]:
    label_sets = LabelSets(folder, partial(LabelSetBody.model_validate, context=Server()), max_sets=2, max_labels=5)
    label_sets.open()
    return label_sets


async def classify(service: Service, **changes: Any) -> dict[str, Any]:
    response = await service.post("/v1/classify", BODY | changes)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()["results"][0]
    return result


@pytest.mark.parametrize(
    ("changes", "decision", "label", "chosen"),
    [
        ({}, "label", "体育", ["体育"]),
        ({"min_score": None, "margin": None, "none_label": None}, "label", "体育", ["体育"]),
        ({"min_score": 0.8}, "none", "体育", []),
        ({"min_score": 0.8, "none_label": "其他"}, "none", "其他", ["其他"]),
        ({"margin": 0.5}, "ambiguous", "体育", ["体育", "财经"]),
        ({"margin": 0.5, "top_k": 1}, "ambiguous", "体育", ["体育", "财经"]),
        ({"min_score": 1, "labels": None, "none_label": "其他"}, "none", "其他", ["其他"]),
    ],
)
async def test_a_request_says_what_is_decided(
    changes: dict[str, Any], decision: str, label: str, chosen: list[str]
) -> None:
    async with running(text_model(), text_model("tuned", "sequence-classification", ("体育", "财经"))) as service:
        result = await classify(service, **changes)
    assert (result["decision"], result["label"], result["chosen"]) == (decision, label, chosen)
    assert (result["scores"][0]["label"], result["score"]) == ("体育", pytest.approx(0.731, abs=1e-3))


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"min_score": 1.5}, "min_score", "at most 1"),
        ({"min_score": "0.5"}, "min_score", "number"),
        ({"margin": -0.1}, "margin", "at least 0"),
        ({"none_label": " "}, "none_label", "must not be empty"),
        ({"margin": 0.1, "multi_label": True}, "margin", "cannot be combined with multi_label"),
        ({"temperature": 2}, "temperature", "unknown field"),
    ],
)
async def test_a_wrong_rule_is_422(changes: dict[str, Any], field: str, message: str) -> None:
    async with running() as service:
        response = await service.post("/v1/classify", BODY | changes)
    assert response.status_code == 422
    [error] = response.json()["errors"]
    assert error["field"] == field
    assert message in error["message"]


async def test_a_stored_set_has_a_rule_that_a_request_overrides(tmp_path: Path) -> None:
    async with running(label_sets=store(tmp_path)) as service:
        rule = {"min_score": 0.8, "none_label": "其他"}
        written = await service.client.put(ONE, json={"labels": LABELS, **rule})
        assert written.json().items() >= {"labels": LABELS, **rule}.items()
        named = {"labels": None, "label_set": "客服"}
        by_set = await classify(service, **named)
        own = await classify(service, **named, min_score=0.7)
    assert (by_set["decision"], by_set["label"]) == ("none", "其他")
    assert (own["decision"], own["label"]) == ("label", "体育")


async def test_the_margin_of_a_set_does_not_count_for_independent_labels(tmp_path: Path) -> None:
    async with running(label_sets=store(tmp_path)) as service:
        await service.client.put(ONE, json={"labels": LABELS, "margin": 0.9})
        result = await classify(service, labels=None, label_set="客服", multi_label=True)
    assert result["decision"] == "label"


@pytest.mark.parametrize(
    ("changes", "is_calibrated"),
    [
        ({}, True),
        ({"min_score": 0.1, "top_k": 1}, True),
        ({"question": "这是什么新闻？"}, False),
        ({"method": "choice"}, False),
        ({"model": "mini"}, False),
        ({"multi_label": True}, False),
        ({"inputs": [{"text": "好吃", "text_pair": "很好"}]}, False),
    ],
)
async def test_the_temperature_of_a_set_is_for_requests_as_it_was_fitted(
    tmp_path: Path, changes: dict[str, Any], is_calibrated: bool
) -> None:
    async with running(label_sets=store(tmp_path)) as service:
        await service.client.put(ONE, json={"labels": LABELS, "temperature": 2.0})
        result = await classify(service, labels=None, label_set="客服", **changes)
    assert result["calibrated"] is is_calibrated
    if is_calibrated:  # sigmoid(1 / 2)
        assert result["score"] == pytest.approx(0.6224593)


async def test_a_wrong_temperature_of_a_set_is_422(tmp_path: Path) -> None:
    async with running(label_sets=store(tmp_path)) as service:
        response = await service.client.put(ONE, json={"labels": LABELS, "temperature": 0})
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "temperature")


async def test_a_reply_says_whether_its_scores_are_calibrated() -> None:
    model = text_model()
    entry = Entry(
        models=("mini",),
        method="choice",
        labels_sha256=label_digest(LABELS),
        temperature=2.0,
        examples=100,
        ece_before=0.1,
        ece_after=0.01,
    )
    model.calibrate(Calibration([entry], lambda name: [name]))
    async with running(model) as service:
        found = await classify(service, labels=LABELS[::-1])
        other = await classify(service, labels=[*LABELS, "娱乐"])
    assert (found["calibrated"], found["score"]) == (True, pytest.approx(0.6224593))
    assert other["calibrated"] is False


async def test_decisions_are_counted_by_kind_and_the_label_of_none_is_not_counted() -> None:
    async with running(text_model("tuned", "sequence-classification", ("体育", "财经"))) as service:
        for changes in ({}, {"min_score": 0.9, "none_label": "私事"}, {"margin": 0.9}):
            await classify(service, labels=None, **changes)
        counts = {
            kind: value(service.metrics, "decisions_total", task="classify", model="tuned", decision=kind)
            for kind in ("label", "none", "ambiguous")
        }
        assert counts == {"label": 1, "none": 1, "ambiguous": 1}
        assert value(service.metrics, "predictions_total", task="classify", model="tuned", label="体育") == 3
        assert "私事" not in (await service.client.get("/metrics")).text
