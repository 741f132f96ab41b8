"""Tables of every format: encodings, headers, and rows that cannot be read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from service.errors import DatasetError
from service.tools.data.fields import Fields
from service.tools.data.files import MAX_FIELD
from service.tools.data.rows import Row
from service.tools.data.tables import Layout, open_table
from tests.unit.tools.data.layouts import json_document, json_lines, write

REVIEWS = [("很好吃", "好"), ("送得太慢", "差"), ("味道, 一般", "差")]
ROWS = [{"评论": text, "标签": label} for text, label in REVIEWS]


def workbook(path: Path, *rows: tuple[Any, ...], title: str = "Sheet") -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.title = title
    for row in rows:
        book.active.append(row)
    book.save(path)
    return path


def parquet(path: Path) -> Path:
    arrow, files = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files.write_table(arrow.Table.from_pylist(ROWS), path)
    return path


def separated(delimiter: str, encoding: str = "utf-8") -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        lines = [("评论", "标签"), *REVIEWS]
        quoted = [[f'"{cell}"' if delimiter in cell else cell for cell in line] for line in lines]
        return write(path, "\n".join(delimiter.join(line) for line in quoted).encode(encoding))

    return make


FORMATS: dict[str, Callable[[Path], Path]] = {
    "comma.csv": separated(","),
    "semicolon.csv": separated(";"),
    "chinese-comma.csv": separated("，"),
    "tabs.csv": separated("\t"),
    "a.tsv": separated("\t"),
    "a.txt": separated("\t"),
    "a.jsonl": lambda path: json_lines(path, *ROWS),
    "lines.json": lambda path: json_lines(path, *ROWS),
    "list.json": lambda path: json_document(path, ROWS),
    "object.json": lambda path: json_document(path, {"version": 1, "data": ROWS}),
    "a.xlsx": lambda path: workbook(path, ("评论", "标签"), *REVIEWS),
    "a.parquet": parquet,
    "bom.csv": separated(",", "utf-8-sig"),
    "gbk.csv": separated(",", "gbk"),
    "gb18030.tsv": separated("\t", "gb18030"),
    "utf-16.txt": separated("\t", "utf-16"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_and_encoding_gives_the_same_table(tmp_path: Path, name: str) -> None:
    table = open_table(FORMATS[name](tmp_path / name))
    assert table.columns == ("评论", "标签")
    assert [dict(row.values) for row in table.rows()] == ROWS
    assert list(table.rows()) == list(table.rows())


def rows_of(path: Path, layout: Layout = Layout()) -> list[Row]:  # noqa: B008
    return list(open_table(path, layout).rows())


def problems(path: Path) -> list[tuple[int, str]]:
    return [(row.line, row.problem) for row in rows_of(path) if row.problem]


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", 'text,label\n\n"两\n行",a\n三,b\n')
    assert [(row.line, row.values["text"]) for row in rows_of(file)] == [(3, "两\n行"), (5, "三")]


def test_a_line_with_too_many_columns_is_a_problem(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "text,label\n好,a\n味道, 不错,b\n差,c,\n")
    assert problems(file) == [(3, "has 3 columns instead of 2; a text with a delimiter needs quotes")]


def test_a_field_without_an_end_is_a_problem_and_reading_goes_on(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", f'text,label\n一,a\n"{"长" * (MAX_FIELD + 1)}\n二,b\n')
    rows = rows_of(file)
    assert rows[1].problem.startswith("not CSV: field larger than field limit")
    assert rows[-1].values == {"text": "二", "label": "b"}


def test_quotes_in_tab_separated_text_are_text(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", 'text\tlabel\n"开头有引号\ta\n没有\tb\n')
    assert [row.values["text"] for row in rows_of(file)] == ['"开头有引号', "没有"]


def test_bytes_of_another_encoding_concern_their_line_only(tmp_path: Path) -> None:
    lines = [f"第{index}行,a".encode() for index in range(9)]
    lines[4] = "第4行,a".encode("gbk")
    rows = rows_of(write(tmp_path / "a.csv", b"text,label\n" + b"\n".join(lines)))
    assert len(rows) == 9
    assert rows[5].values["text"] == "第5行"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"\n\n \n", "has no rows"),
        ("a.jsonl", b"\n", "has no rows"),
        ("a.jsonl", b"{\n}\n", r"is not JSON \(line 1\), as all of the first 2"),
        ("a.json", b'"text"', "is not a JSON object"),
        ("a.csv", b"PK\x03\x04...", r"is an Excel file or an archive \(zip\)"),
        ("a.csv", b"\xd0\xcf\x11\xe0...", r"is an old Excel file \(\.xls\); save it as \.xlsx or as CSV"),
        ("a.csv", b"\xff\x80\xff\n\xff\x81\xff\n", "is neither UTF-8 nor GB18030; name its encoding with --encoding"),
        ("a.xls", b"x", r"wanted a file named \.csv .*, not \.xls"),
        ("a", b"x", "not without a suffix"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        open_table(write(tmp_path / name, content))


@pytest.mark.parametrize("name", ["a.xlsx", "a.parquet"])
def test_a_damaged_workbook_or_parquet_file_is_refused(tmp_path: Path, name: str) -> None:
    pytest.importorskip("openpyxl")
    pytest.importorskip("pyarrow")
    with pytest.raises(DatasetError, match=r"cannot be read as (a workbook|parquet)"):
        open_table(write(tmp_path / name, b"no such thing"))


def test_a_workbook_with_a_damaged_sheet_is_refused(tmp_path: Path) -> None:
    whole = workbook(tmp_path / "whole.xlsx", ("text", "label"), *(("好", "a") for _ in range(500)))
    with ZipFile(whole) as old, ZipFile(tmp_path / "a.xlsx", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content[: len(content) // 2] if "worksheets/" in name else content)
    with pytest.raises(DatasetError, match="cannot be read as a workbook"):
        list(open_table(tmp_path / "a.xlsx").rows())


def test_a_file_that_ends_within_a_character_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "文本\t标签\n好\ta".encode("utf-16")[:-1])
    with pytest.raises(DatasetError, match="is not utf-16: truncated data"):
        open_table(file)


def test_an_encoding_that_python_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="--encoding klingon: Python has no encoding of this name"):
        open_table(write(tmp_path / "a.csv", "text,label\n好,a\n"), Layout(encoding="klingon"))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"a\.csv: no such file"):
        open_table(tmp_path / "a.csv")
    with pytest.raises(DatasetError, match="is a folder"):
        open_table(tmp_path)


@pytest.mark.parametrize(("name", "package"), [("a.xlsx", "openpyxl"), ("a.parquet", "pyarrow")])
def test_a_missing_package_is_named_with_the_command(
    tmp_path: Path, name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (package, "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DatasetError, match=f"needs the package {package}: .*-m pip install {package}"):
        open_table(write(tmp_path / name, b"x"))


@pytest.mark.parametrize(
    ("content", "has_header"),
    [
        ("review,label\n好,1\n", True),
        ("comment_text,flag\n一条很长很长很长的评论,1\n另一条很长很长的评论,0\n", True),
        ("一条很长的评论,1\n另一条评论,0\n", False),
        ("好,1\n差,0\n", False),
        ("怎么还款\t如何还钱\t1\n", False),
        ("col,col\n好,差\n差,好\n", False),
    ],
)
def test_a_header_is_recognized(tmp_path: Path, content: str, *, has_header: bool) -> None:
    table = open_table(write(tmp_path / "a.csv", content))
    assert (table.columns[0] != "column 1") == has_header
    assert any("guessed no header" in note for note in table.notes) != has_header


def test_a_named_column_makes_the_first_line_a_header(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "甲,乙\n丙,丁\n")
    assert open_table(file, named=Fields(text="乙")).columns == ("甲", "乙")
    assert open_table(file).columns == ("column 1", "column 2")
    assert open_table(file, Layout(has_header=True)).columns == ("甲", "乙")


def test_columns_without_a_name_and_with_the_same_name_get_their_own(tmp_path: Path) -> None:
    table = open_table(write(tmp_path / "a.csv", "text,,text\na,b,c\n"))
    assert table.columns == ("text", "column 2", "text (2)")


def test_the_title_rows_of_a_sheet_are_not_its_header(tmp_path: Path) -> None:
    file = workbook(tmp_path / "a.xlsx", ("评论数据", None), (None, None), ("评论", "标签"), *REVIEWS)
    table = open_table(file)
    assert table.columns == ("评论", "标签")
    assert [row.line for row in table.rows()] == [4, 5, 6]
    assert "guessed 1 title rows above the header" in table.notes


def test_a_formula_has_the_stored_value_or_none(tmp_path: Path) -> None:
    file = workbook(tmp_path / "a.xlsx", ("评论", "标签"), ("好", "=1+1"), ("差", 2))
    assert [row.values.get("标签") for row in rows_of(file)] == [None, 2]


def test_a_sheet_is_named_or_the_first(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    file = workbook(tmp_path / "a.xlsx", ("评论", "标签"), ("好", "a"), title="一")
    book = openpyxl.load_workbook(file)
    book.create_sheet("二").append(("text", "label"))
    book["二"].append(("b", "c"))
    book.save(file)
    assert open_table(file).notes == ("guessed sheet '一' of 一, 二 (--sheet)",)
    assert open_table(file, Layout(sheet="二")).columns == ("text", "label")
    with pytest.raises(DatasetError, match="--sheet 三: no such sheet; the sheets are 一, 二"):
        open_table(file, Layout(sheet="三"))


def test_lines_that_are_no_objects_are_problems(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"text": "好"}\n{"text": \n3\n["列", "表"]\n' + "[" * 5000 + "\n")
    assert problems(file) == [(2, "is not JSON"), (3, "is not a JSON object"), (5, "is not JSON")]
    assert rows_of(file)[3].values == {"column 1": "列", "column 2": "表"}


def annotated(*results: dict[str, Any], **data: str) -> dict[str, Any]:
    return {"id": 1, "data": data, "annotations": [{"result": list(results)}]}


def result(kind: str, value: object, name: str = "sentiment") -> dict[str, Any]:
    return {"from_name": name, "to_name": "text", "type": kind, "value": {kind: value}}


def test_an_export_of_label_studio_is_flat(tmp_path: Path) -> None:
    tasks = [
        annotated(result("choices", ["差评"]), text="太慢"),
        annotated(result("taxonomy", [["菜系", "川菜"], ["菜系", "粤菜"]]), text="很辣"),
        annotated(result("selected", "left"), text1="甲", text2="乙"),
        annotated(result("rating", 4), text="还行"),
        {"id": 2, "data": {"text": "没有"}, "annotations": []},
        {"id": 3, "data": {"text": "不要"}, "annotations": [{"was_cancelled": True, "result": []}]},
    ]
    table = open_table(json_document(tmp_path / "export.json", tasks))
    assert [row.values.get("sentiment") for row in table.rows()] == [
        ["差评"],
        ["菜系/川菜", "菜系/粤菜"],
        "left",
        4,
        None,
        None,
    ]
    assert [row.problem for row in table.rows()][4:] == ["has no annotation"] * 2
    assert table.label == "sentiment"
    assert "guessed a Label Studio export with the controls sentiment" in table.notes


def test_annotations_that_differ_are_a_problem(tmp_path: Path) -> None:
    task = annotated(result("choices", ["差评"]), text="太慢")
    task["annotations"].append({"result": [result("choices", ["好评"])]})
    file = write(tmp_path / "export.json", json.dumps([task, annotated(result("choices", ["好评"]), text="好")]))
    assert problems(file) == [(1, "its 2 annotations differ")]
