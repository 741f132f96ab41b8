"""The rows of a corpus, from any of their places on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from service.errors import DatasetError
from service.tools.corpora import source as module
from service.tools.corpora.source import Place, Row, open_source, raw_of

Write = Callable[[str, bytes], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return to_file


START = Place()


def rows_of(uri: str, start: Place = START, encoding: str = "utf-8") -> list[Row]:
    source = open_source(uri, encoding)
    return [source.row(record) for record in source.records(start)]


def texts_of(rows: list[Row]) -> list[Any]:
    return [row.problem or row.values["text"] for row in rows]


def write_parquet(path: Path, num_rows: int, group: int) -> str:
    parquet.write_table(pyarrow.table({"text": [f"t{i}" for i in range(num_rows)]}), path, row_group_size=group)
    return str(path)


def test_every_line_is_a_row_with_its_number(write: Write) -> None:
    uri = write(
        "a.jsonl", '{"text": "好"}\r\n\n[1]\n{\n"只有文字"\n\xff\n{"text": "末"}'.encode().replace(b"\xc3\xbf", b"\xff")
    )
    rows = rows_of(uri)
    assert [row.number for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert texts_of(rows) == [
        "好",
        "the line is blank",
        "the line is no JSON object",
        "the line is not JSON",
        "只有文字",
        "the line is not utf-8 (--encoding)",
        "末",
    ]


def test_a_byte_order_mark_is_left_out(write: Write) -> None:
    assert texts_of(rows_of(write("a.jsonl", b'\xef\xbb\xbf{"text": "a"}\n'))) == ["a"]
    assert texts_of(rows_of(write("a.csv", b"\xef\xbb\xbftext\na\n"))) == ["a"]


def test_a_line_that_is_too_long_is_one_bad_row(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE", 30)
    rows = rows_of(write("a.jsonl", b'"a"\n' + b"x" * 100 + b'\n"b"\n'))
    assert texts_of(rows) == ["a", "the line has more than 30 bytes", "b"]


def test_a_cell_of_csv_may_have_lines(write: Write) -> None:
    rows = rows_of(write("a.csv", b'id,text\n1,"one\ntwo"\n\n2,three\n3,four,,x\n'))
    assert texts_of(rows) == ["one\ntwo", "three", "has 4 columns instead of 2"]


def test_another_encoding_is_named(write: Write) -> None:
    content = "text\n中文\n".encode("gb18030")
    assert texts_of(rows_of(write("a.csv", content), encoding="gb18030")) == ["中文"]


@pytest.mark.parametrize("encoding", ["utf-16", "no-such"])
def test_an_encoding_without_lines_is_refused(write: Write, encoding: str) -> None:
    with pytest.raises(DatasetError, match="--encoding"):
        open_source(write("a.jsonl", b"1\n"), encoding)


@pytest.mark.parametrize("name", ["missing.jsonl", "a.txt", "missing.parquet"])
def test_a_file_that_is_missing_or_of_another_format_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=name):
        open_source(str(tmp_path / name))


def test_a_file_that_is_no_parquet_is_refused(write: Write) -> None:
    with pytest.raises(DatasetError, match="cannot be read as parquet"):
        open_source(write("a.parquet", b"PAR1 but not really"))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=8), st.sampled_from(["csv", "jsonl"]))
def test_reading_goes_on_from_every_place(texts: list[str], kind: str) -> None:
    path = f"memory://places/a.{kind}"
    lines = [f'"{text.replace(chr(34), chr(34) * 2)}",1' for text in texts]
    with fsspec.open(path, "wb") as file:
        file.write("\n".join(["text,n", *lines]).encode(errors="ignore"))
    source = open_source(path)
    everything = list(source.records())
    for index, record in enumerate(everything):
        assert [one.data for one in source.records(record.end)] == [one.data for one in everything[index + 1 :]]


@pytest.mark.parametrize("row", [0, 1, 7, 8, 20, 24, 25])
def test_a_parquet_file_is_read_from_any_row(tmp_path: Path, row: int) -> None:
    source = open_source(write_parquet(tmp_path / "a.parquet", 25, 8))
    found = [source.row(record) for record in source.records(Place(row))]
    assert [(one.number, one.values["text"]) for one in found] == [(i + 1, f"t{i}") for i in range(row, 25)]


def test_a_corpus_may_be_in_an_object_store() -> None:
    with fsspec.open("memory://bucket/a.jsonl", "wb") as file:
        file.write(b'"a"\n"b"\n')
    assert texts_of(rows_of("memory://bucket/a.jsonl", Place(1, 4))) == ["b"]


def test_a_store_whose_package_is_missing_is_named() -> None:
    with pytest.raises(DatasetError, match="no-such-store"):
        open_source("no-such-store://bucket/a.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "raw"),
    [("a.jsonl", b"{bad \xff\r\n", "{bad \\xff"), ("a.csv", b"text\na,b\n", ["a", "b"])],
)
def test_a_bad_row_is_shown_as_it_is_in_the_file(write: Write, name: str, content: bytes, raw: Any) -> None:
    source = open_source(write(name, content))
    assert raw_of(next(source.records()), "utf-8") == raw
