"""The files of answered rows, in each format."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from service.api.protocols.native import ROUTES
from service.tools.corpora.writers import ERROR, ROW, join_parquet, kept_name, open_writer, result_columns

COLUMNS = {ROW: "int64", "id": "json", "score": "float64", "embedding": "vector", "scores": "json", ERROR: "string"}
ROWS: list[dict[str, Any]] = [
    {ROW: 1, "id": 7, "score": 0.5, "embedding": [1.0, 2.0], "scores": [{"label": "好", "score": 0.5}]},
    {ROW: 2, "id": "b", ERROR: "invalid_row: text is empty"},
]


def write(file: Path, columns: dict[str, Any] = COLUMNS) -> Path:
    writer = open_writer(file, file.suffix[1:], columns)
    writer.write(ROWS)
    writer.close()
    return file


@pytest.mark.parametrize("task", [route.task for route in ROUTES])
def test_the_results_of_every_task_have_columns(task: str) -> None:
    assert {"tokens": "int64", "truncated": "bool"}.items() <= result_columns(task).items()


def test_columns_have_the_types_of_the_fields() -> None:
    classify, embed = result_columns("classify"), result_columns("embed")
    expected = {"label": "string", "score": "float64", "decision": "string", "calibrated": "bool", "chosen": "json"}
    assert expected.items() <= classify.items()
    assert embed["embedding"] == "vector"


def test_json_lines_hold_the_rows_as_they_are(tmp_path: Path) -> None:
    lines = write(tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert list(map(json.loads, lines)) == ROWS


def test_csv_has_json_in_the_cells_of_lists(tmp_path: Path) -> None:
    with write(tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert json.loads(first["scores"]) == ROWS[0]["scores"]
    assert (second["row"], second["score"], second["error"]) == ("2", "", ROWS[1][ERROR])


def test_parquet_has_vectors_and_nulls(tmp_path: Path) -> None:
    table = parquet.read_table(write(tmp_path / "a.parquet"))
    assert table.schema.field("embedding").type == pyarrow.list_(pyarrow.float32())
    assert table["embedding"].to_pylist() == [[1.0, 2.0], None]
    assert table["id"].to_pylist() == ["7", "b"]


def test_a_column_of_a_parquet_input_keeps_its_type(tmp_path: Path) -> None:
    columns = {ROW: "int64", "score": pyarrow.float32()}
    assert parquet.read_schema(write(tmp_path / "a.parquet", columns)).field("score").type == pyarrow.float32()


def test_parquet_parts_become_one_file(tmp_path: Path) -> None:
    parts = [write(tmp_path / f"{name}.parquet") for name in "ab"]
    join_parquet((lambda part=part: part.open("rb") for part in parts), tmp_path / "all.parquet", COLUMNS)
    assert parquet.read_table(tmp_path / "all.parquet")[ROW].to_pylist() == [1, 2, 1, 2]


@pytest.mark.parametrize(("name", "named"), [("id", "id"), ("label", "input_label"), ("row", "input_row")])
def test_a_kept_column_has_a_name_of_its_own(name: str, named: str) -> None:
    assert kept_name(name, {"label": "string"}) == named
