"""Readers of data files, and the errors for broken files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.errors import DatasetError
from service.tools.data.converters import RecordError
from service.tools.data.files import MAX_FIELD, find, read_any, read_json, read_records, read_text, take_each
from tests.unit.tools.data.layouts import write

BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_json_lines_are_read_without_blank_lines(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a{ending}", '{"a": "甲"}\n\n  \n["b"]\r\n3')
    assert list(read_records(path)) == [{"a": "甲"}, ["b"], 3]


def test_tab_separated_text_is_read_by_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "甲\t乙\t1\r\n\n丙 \t\t0\n丁")
    assert list(read_records(path)) == [["甲", "乙", "1"], ["丙 ", "", "0"], ["丁"]]


def test_csv_fields_may_have_quotes_and_line_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'label,review\n1,"很""好"",\n下次再来"\r\n0,差\n')
    assert list(read_records(path)) == [{"label": "1", "review": '很"好",\n下次再来'}, {"label": "0", "review": "差"}]


@pytest.mark.parametrize(
    ("name", "content", "records"),
    [
        ("a.json", b'{"a":\n1}', [{"a": 1}]),
        ("a.json", b'[{"a": 1}, "b"]', [{"a": 1}, "b"]),
        ("a.JSON", BOM + b'{"a": 1}\r\n\n["b"]', [{"a": 1}, ["b"]]),
        ("a.csv", b'a,"b\r\nc"\r\n1,2\n', [["a", "b\nc"], ["1", "2"]]),
        ("a.txt", b"a\tb\n\nc\xff\n", [["a", "b"], ["c\ufffd"]]),
    ],
)
def test_read_any_detects_the_layout(tmp_path: Path, name: str, content: bytes, records: list[object]) -> None:
    assert list(read_any(write(tmp_path / name, content))) == records


@pytest.mark.parametrize(
    ("name", "content", "records"),
    [
        ("a.csv", "label\n1\n", [{"label": "1"}]),
        ("a.json", '{"label": 1}\n', [{"label": 1}]),
        ("a.tsv", "甲\t1\n", [["甲", "1"]]),
    ],
)
def test_a_byte_order_mark_is_skipped(tmp_path: Path, name: str, content: str, records: list[object]) -> None:
    assert list(read_records(write(tmp_path / name, BOM + content.encode()))) == records


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.txt"])
def test_an_empty_file_has_no_records(tmp_path: Path, name: str) -> None:
    assert list(read_records(write(tmp_path / name, ""))) == []


def test_read_json_reads_one_document(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", BOM + '[["甲"],\n ["乙"]]'.encode())
    assert list(read_json(path)) == [["甲"], ["乙"]]


def test_the_error_of_a_line_that_is_not_json_has_its_number(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '{"a": 1}\n\n{"a": \n')
    with pytest.raises(DatasetError, match=r"a\.json:3: not JSON: "):
        list(read_records(path))


@pytest.mark.parametrize(("content", "problem"), [("[1,", "not JSON: "), ("{}", "wanted a JSON list, found dict$")])
def test_a_document_that_is_not_a_json_list_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    with pytest.raises(DatasetError, match=rf"a\.json: {problem}"):
        read_json(write(tmp_path / "a.json", content))


def test_a_csv_field_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f"label,review\n1,好\n0,{'差' * (MAX_FIELD + 1)}\n")
    with pytest.raises(DatasetError, match=r"a\.csv:3: not CSV: field larger than field limit"):
        list(read_records(path))


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.txt"])
def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "今天天气很好\n".encode("gb18030"))
    with pytest.raises(DatasetError, match=r"a\.\w+: not UTF-8: "):
        list(read_records(path))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    for read in (lambda path: list(read_records(path)), read_json, read_text):
        with pytest.raises(DatasetError, match=r"none\.json: No such file or directory$"):
            read(tmp_path / "none.json")


def test_find_returns_the_first_pattern_that_is_a_file(tmp_path: Path) -> None:
    second = write(tmp_path / "b" / "dev.json", "")
    (tmp_path / "a" / "dev.json").mkdir(parents=True)
    assert find(tmp_path, ("a/{split}.json", "b/{split}.json", "c/{split}.json"), "dev") == second


def test_the_error_lists_all_paths_tried(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        find(tmp_path, ("a/{split}.json", "b/{split}.json"), "test")
    assert str(caught.value) == f"no such data file: {tmp_path}/a/test.json or {tmp_path}/b/test.json"


def test_the_error_of_a_bad_record_has_its_number() -> None:
    def twice(record: int) -> Iterator[int]:
        yield record
        if record == 3:
            raise RecordError("is three")
        yield record

    taken = take_each(Path("a.json"), [1, 2, 3], twice)
    assert [next(taken) for _ in range(4)] == [1, 1, 2, 2]
    with pytest.raises(DatasetError, match=r"^a\.json, record 3: is three$"):
        next(taken)
