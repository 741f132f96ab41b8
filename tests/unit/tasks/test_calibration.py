"""Temperatures: the file that holds them, and which scores they are for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import CheckpointError, SettingError
from service.tasks.calibration import (
    FILE_NAME,
    Calibration,
    Entry,
    label_digest,
    read_calibration,
    read_own_calibration,
    scale_independent,
    scale_probabilities,
    write_entry,
)

LABELS = ("体育", "财经", "科技")
BLEND = ("mini", "e5-small")


def entry(**changes: Any) -> Entry:
    fields: dict[str, Any] = {
        "models": ["mini", "e5-small"],
        "method": "blend",
        "labels_sha256": label_digest(LABELS),
        "temperature": 1.5,
        "examples": 1000,
        "ece_before": 0.1,
        "ece_after": 0.02,
    }
    return Entry.model_validate(fields | changes)


def calibration(*entries: Entry) -> Calibration:
    return Calibration(entries, lambda name: [name] if name in ("mini", "e5-small", "head") else [])


def write(path: Path, *entries: dict[str, Any], **changes: Any) -> Path:
    path.write_text(json.dumps({"version": 1, "entries": list(entries)} | changes), encoding="utf-8")
    return path


# scores


def test_a_temperature_divides_the_logits_of_probabilities() -> None:
    scores = np.array([0.9, 0.1], dtype=np.float32)
    assert scale_probabilities(scores, 2.0) == pytest.approx([0.75, 0.25])


def test_a_temperature_divides_the_logit_of_each_independent_probability() -> None:
    scores = np.array([0.9, 0.5, 0.0, 1.0], dtype=np.float32)
    assert scale_independent(scores, 2.0) == pytest.approx([0.75, 0.5, 0.0, 1.0], abs=1e-6)


def test_the_lowest_temperature_gives_finite_probabilities() -> None:
    scores = np.array([0.6, 0.4, 0.0], dtype=np.float32)
    assert scale_probabilities(scores, 0.01) == pytest.approx([1.0, 0.0, 0.0])
    assert scale_independent(scores, 0.01) == pytest.approx([1.0, 0.0, 0.0])


# the entry of scores


def test_the_order_of_labels_does_not_matter() -> None:
    assert calibration(entry()).find(BLEND, "blend", LABELS[::-1]) == 1.5


@pytest.mark.parametrize(
    ("models", "method", "labels", "question", "multi_label"),
    [
        (("mini",), "blend", LABELS, None, False),
        (BLEND, "choice", LABELS, None, False),
        (BLEND, "blend", LABELS[:2], None, False),
        (BLEND, "blend", LABELS, "这是什么新闻？", False),
        (BLEND, "blend", LABELS, None, True),
    ],
)
def test_an_entry_is_of_one_request_only(
    models: tuple[str, ...], method: Any, labels: tuple[str, ...], question: str | None, multi_label: bool
) -> None:
    assert calibration(entry()).find(models, method, labels, question, multi_label) is None


def test_an_embedding_model_reads_no_question() -> None:
    found = calibration(entry(models=["e5-small"], method="embedding"))
    assert found.find(("e5-small",), "embedding", LABELS, "这是什么新闻？") == 1.5


def test_a_classifier_has_an_entry_by_its_labels_or_without() -> None:
    by_labels = calibration(entry(models=["head"], method="classifier", temperature=2.0))
    without = calibration(entry(models=["head"], method="classifier", temperature=3.0, labels_sha256=None))
    assert by_labels.find(("head",), "classifier", LABELS) == 2.0
    assert without.find(("head",), "classifier", ("甲", "乙")) == 3.0


@pytest.mark.parametrize("last", [None, label_digest(LABELS)])
def test_the_later_entry_of_the_labels_of_a_head_counts(last: str | None) -> None:
    first = label_digest(LABELS) if last is None else None
    entries = [
        entry(models=["head"], method="classifier", labels_sha256=digest, temperature=temperature)
        for digest, temperature in ((first, 2.0), (last, 3.0))
    ]
    assert calibration(*entries).find(("head",), "classifier", LABELS) == 3.0


def test_an_entry_of_a_source_is_of_all_models_with_it() -> None:
    names = {"IDEA-CCNL/Erlangshen": ["one", "two"]}
    found = Calibration([entry(models=["IDEA-CCNL/Erlangshen"], method="choice")], lambda name: names.get(name, []))
    assert [found.find((name,), "choice", LABELS) for name in ("one", "two", "three")] == [1.5, 1.5, None]


def test_an_entry_of_a_model_that_is_not_served_is_unused() -> None:
    other = entry(models=["mini", "other"])
    assert calibration(entry(), other).unused == [other]


# the file


def test_a_written_entry_is_read_again(tmp_path: Path) -> None:
    written = entry(name="新闻", question="这是什么新闻？")
    write_entry(tmp_path / "calibration.json", written)
    assert read_calibration(tmp_path / "calibration.json") == (written,)


def test_an_entry_replaces_the_one_of_the_same_labels(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    for written in (entry(), entry(question="这是什么新闻？"), entry(temperature=2.0)):
        write_entry(path, written)
    assert [one.temperature for one in read_calibration(path)] == [1.5, 2.0]
    assert [file.name for file in tmp_path.iterdir()] == ["calibration.json"]


def test_a_file_that_is_no_calibration_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="version: Field required"):
        write_entry(path, entry())
    assert path.read_text(encoding="utf-8") == "{}"


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be written: No such file or directory"):
        write_entry(tmp_path / "missing" / "calibration.json", entry())


ENTRY = entry().model_dump(mode="json", exclude_none=True)


@pytest.mark.parametrize(
    ("entries", "changes", "problem"),
    [
        ([ENTRY], {"version": 2}, "version: Input should be 1"),
        ([ENTRY | {"temperature": 0}], {}, "entries.0.temperature: Input should be greater than or equal to 0.01"),
        ([ENTRY | {"temprature": 1}], {}, "entries.0.temprature: Extra inputs are not permitted"),
        ([ENTRY | {"labels_sha256": "体育"}], {}, "entries.0.labels_sha256: "),
        ([ENTRY | {"labels_sha256": None}], {}, "entries.0: Value error, labels_sha256 is required"),
        ([ENTRY | {"models": []}], {}, "entries.0.models: is required"),
        (
            [ENTRY, ENTRY | {"temperature": 2}],
            {},
            "entries.1: has the models, method, labels and question of entries.0",
        ),
    ],
)
def test_a_wrong_file_ends_the_start_with_its_field(
    tmp_path: Path, entries: list[dict[str, Any]], changes: dict[str, Any], problem: str
) -> None:
    path = write(tmp_path / "calibration.json", *entries, **changes)
    with pytest.raises(SettingError) as raised:
        read_calibration(path)
    assert str(raised.value).startswith(f"models.calibration: {path}: {problem}")


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "cannot be read: No such file or directory"), (b"\xff{", "the file: Invalid JSON")]
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "calibration.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingError, match=problem):
        read_calibration(path)


# the folder of a model


def test_the_entries_of_a_folder_are_of_its_model_by_any_name(tmp_path: Path) -> None:
    own = ENTRY | {"models": ["runs/2"], "method": "classifier"}
    write(tmp_path / FILE_NAME, own, own | {"models": [], "labels_sha256": None})
    assert [one.models for one in read_own_calibration(tmp_path, "head")] == [("head",), ("head",)]


def test_a_folder_without_the_file_has_no_entries(tmp_path: Path) -> None:
    assert read_own_calibration(tmp_path, "head") == ()


@pytest.mark.parametrize(
    ("own", "problem"), [(ENTRY, "entries.0.models: are two"), (ENTRY | {"examples": 0}, "entries.0.examples: ")]
)
def test_a_wrong_file_in_a_folder_ends_the_start_with_its_field(
    tmp_path: Path, own: dict[str, Any], problem: str
) -> None:
    path = write(tmp_path / FILE_NAME, own)
    with pytest.raises(CheckpointError) as raised:
        read_own_calibration(tmp_path, "head")
    assert str(raised.value).startswith(f"{path}: {problem}")
