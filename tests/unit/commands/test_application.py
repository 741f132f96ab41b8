"""The composition root: admission of a request before its body is read, and the description of the models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.api.schemas import HeadInfo
from service.commands.application import Application
from service.domain import RequestOptions
from service.errors import SettingError, Unavailable
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


def entry(**changes: Any) -> dict[str, Any]:
    measured = {"temperature": 2.0, "examples": 100, "ece_before": 0.1, "ece_after": 0.01}
    return {"models": ["m"], "method": "classifier", **measured, **changes}


def calibration_file(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"version": 1, "entries": list(entries)}), encoding="utf-8")
    return path


def found_temperature(settings: Models) -> float | None:
    application = Application(Settings(models=settings))
    application._fetch()
    calibration = application.pipeline.models["m"].calibration
    assert calibration is not None
    return calibration.find(("m",), "classifier", ("甲", "乙"))


def test_the_temperatures_of_a_folder_and_of_the_setting_are_used(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "m", kind="sequence-classification", num_labels=2, num_layers=1)
    specs = (f"m={path}",)
    assert found_temperature(Models(specs=specs)) is None
    calibration_file(path / "calibration.json", entry(models=["as it was called"]))
    assert found_temperature(Models(specs=specs)) == 2.0
    file = calibration_file(tmp_path / "calibration.json", entry(temperature=3.0))
    assert found_temperature(Models(specs=specs, calibration=file)) == 3.0


def test_a_wrong_calibration_ends_the_start(tmp_path: Path) -> None:
    file = calibration_file(tmp_path / "calibration.json", entry(temperature=-1))
    with pytest.raises(SettingError, match=r"models\.calibration: .*: entries\.0\.temperature: "):
        Application(Settings(models=Models(calibration=file)))


def test_a_temperature_of_a_model_that_is_not_served_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_checkpoint(tmp_path / "m", kind="sequence-classification", num_labels=2, num_layers=1)
    file = calibration_file(tmp_path / "calibration.json", entry(models=["other"]))
    with caplog.at_level("WARNING"):
        assert found_temperature(Models(specs=(f"m={path}",), calibration=file)) is None
    assert [record.message for record in caplog.records] == ["calibration of a model that is not served"]
