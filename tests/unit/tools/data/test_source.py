"""Labelled data by its name: a file, or a task of the registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import DatasetError
from service.tools.data.source import is_file, load_source
from tests.unit.tools.data.layouts import json_lines, write


def test_a_file_is_read_by_the_flags(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "text,label\n好,1\n坏,0\n")
    data = load_source(str(file), names={"0": "差", "1": "好"})
    assert (data.source, data.files, data.kind, data.labels) == (str(file), (file,), "classify", ("差", "好"))


def test_a_task_is_read_from_the_folder_of_data_sets(tmp_path: Path) -> None:
    file = json_lines(tmp_path / "fewclue/bustm/train_0.json", {"sentence1": "甲", "sentence2": "乙", "label": "1"})
    data = load_source("bustm", data=tmp_path, split="train", fold="0")
    assert (data.source, data.files, data.kind) == ("bustm/train", (file,), "similarity")
    assert data.report.class_counts == {"不相似": 0, "相似": 1}


def test_a_task_with_options_of_its_own_has_no_labels(tmp_path: Path) -> None:
    records = [{"abst": "摘要", "keyword": [word], "label": "1"} for word in ("甲", "乙")]
    json_lines(tmp_path / "fewclue/csl/dev_few_all.json", *records)
    data = load_source("csl", data=tmp_path)
    assert (data.kind, data.task, data.labels) == ("mrc", "classify", ())


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"^reviews: is neither a file nor a data set; the data sets are tnews,"):
        load_source("reviews")
    with pytest.raises(DatasetError, match=r"reviews\.csv: no such file"):
        load_source(str(tmp_path / "reviews.csv"))
    with pytest.raises(DatasetError, match="name the folder of the data sets with --data"):
        load_source("bustm")


@pytest.mark.parametrize(("source", "expected"), [("a.csv", True), ("bustm", False), ("clue/afqmc", False)])
def test_a_name_with_a_suffix_is_a_file(source: str, *, expected: bool) -> None:
    assert is_file(source) == expected
