"""The composition root: admission of a request before its body is read, and the description of the models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.api.schemas import HeadInfo
from service.commands.application import Application
from service.domain import RequestOptions
from service.errors import Unavailable
from service.settings import Batching, Models, Settings
from tests.checkpoints import make_checkpoint


def test_admit_refuses_early_only_without_a_result_cache() -> None:
    without_cache, with_cache = (Application(Settings(batching=Batching(cache_entries=entries))) for entries in (0, 10))
    for each in (without_cache, with_cache):
        each.give_up()
    with pytest.raises(Unavailable):
        without_cache.admit(RequestOptions())
    with_cache.admit(RequestOptions())


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_models_tells_head_labels_tokenizer_and_commit_of_each(tmp_path: Path) -> None:
    multi = make_checkpoint(tmp_path / "multi", kind="sequence-classification", num_labels=3, num_layers=1)
    config = json.loads((multi / "config.json").read_text())
    (multi / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))
    rank = make_checkpoint(tmp_path / "rank", kind="sequence-classification", num_labels=1, num_layers=1)
    uni = make_checkpoint(tmp_path / "snapshots" / COMMIT, num_layers=1)
    encoder = make_checkpoint(tmp_path / "encoder", kind="encoder", num_layers=1)
    specs = (f"multi={multi}", f"rank={rank}", f"uni={uni}", f"encoder={encoder}")
    application = Application(Settings(models=Models(specs=specs, labels={"multi": ("甲", "乙", "丙")})))
    application._fetch()
    models = {model.name: model for model in application.models().models}
    assert models["multi"].head == HeadInfo(
        kind="sequence-classification",
        num_classes=3,
        problem_type="multi_label_classification",
        activation="sigmoid",
    )
    assert models["rank"].head == HeadInfo(kind="sequence-classification", num_classes=1, activation="sigmoid")
    assert models["uni"].head == HeadInfo(kind="masked-lm")
    assert models["encoder"].head is None
    assert [(model.label_source, model.labels) for model in models.values()] == [
        ("setting", ["甲", "乙", "丙"]),
        ("placeholder", []),
        (None, []),
        (None, []),
    ]
    assert {model.tokenizer for model in models.values()} == {"WordPiece"}
    assert [model.resolved_revision for model in models.values()] == [None, None, COMMIT, None]
    assert [model.source for model in models.values()] == [str(multi), str(rank), str(uni), str(encoder)]


def test_the_predictions_of_a_regression_are_not_declared(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "m", kind="sequence-classification", num_labels=1, num_layers=1)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"problem_type": "regression"}))
    application = Application(Settings(models=Models(specs=(f"m={path}",))))
    application._fetch()
    pages = [sample for family in application.metrics.registry.collect() for sample in family.samples]
    assert not [one for one in pages if one.name == "erlangshen_predictions_total" and one.labels["task"] == "classify"]
