"""The benchmark of label sets, in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import label_sets


def test_the_labels_are_different() -> None:
    assert len(set(label_sets.make_labels(10_000))) == 10_000


@pytest.mark.slow
@pytest.mark.system
def test_the_time_of_a_request_is_measured_by_the_number_of_labels(tmp_path: Path) -> None:
    file = tmp_path / "label_sets.json"
    few = ("--sizes", "4", "300", "--templates", "1", "--turns", "2")
    assert label_sets.main([*few, "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert report["methods"].keys() == {"blend", "embedding"}
    for method in report["methods"].values():
        assert method["ratio"] == pytest.approx(method["median_ms"]["300"] / method["median_ms"]["4"], abs=0.05)
