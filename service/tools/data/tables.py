"""Reads a user's file of any supported format as a table: its columns, and its rows with their place in the file.

The rows are read again with each call of `Table.rows`, one at a time, so that a file may be larger than memory; JSON
documents are the exception. A row that cannot be read has a `problem` instead of values.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from service.errors import DatasetError
from service.tools.data import label_studio, workbooks
from service.tools.data.encodings import guess_encoding, open_text
from service.tools.data.fields import Fields, looks_like_header, unnamed
from service.tools.data.files import MAX_FIELD
from service.tools.data.rows import Row

SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".xlsx", ".xlsm", ".parquet")
SAMPLE = 1000
"""Rows by which columns and fields are guessed."""
DELIMITERS = (",", "\t", ";", "，")


@dataclass(frozen=True, slots=True)
class Layout:
    """What the user says about a file; None where it is to be guessed."""

    encoding: str | None = None
    has_header: bool | None = None
    sheet: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """`rows` starts at the first row again with each call; `notes` are sentences about what was guessed.

    `label` is the column of the label where the format says which it is.
    """

    columns: tuple[str, ...]
    rows: Callable[[], Iterator[Row]]
    notes: tuple[str, ...] = ()
    label: str | None = None

    def sample(self) -> list[Row]:
        return list(islice(self.rows(), SAMPLE))


def open_table(path: Path, layout: Layout = Layout(), named: Fields = Fields()) -> Table:  # noqa: B008 - both are frozen
    """The table of a file; `named` are the columns that the user names, by which a header is recognized.

    Raises:
        DatasetError: the file cannot be read, is empty, or has no format that is known.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    if path.stat().st_size == 0:
        raise DatasetError(f"{path}: is empty")
    match path.suffix.lower():
        case ".csv" | ".tsv" | ".txt":
            table = _open_text(path, layout, named)
        case ".json" | ".jsonl" | ".ndjson":
            table = _open_json(path, layout)
        case ".xlsx" | ".xlsm" | ".parquet":
            table = _open_binary(path, layout, named)
        case suffix:
            raise DatasetError(f"{path}: wanted a file named {' '.join(SUFFIXES)}, not {suffix or 'without a suffix'}")
    if not table.columns:
        raise DatasetError(f"{path}: has no rows")
    return table


# text with delimiters


def _open_text(path: Path, layout: Layout, named: Fields) -> Table:
    encoding, notes = _encoding_of(path, layout)
    delimiter = _delimiter_of(path, encoding)
    with open_text(path, encoding) as lines:
        first = [cells for _, cells, problem in islice(_cells(lines, delimiter), 50) if not problem]
    if not first:
        return Table((), lambda: iter(()))
    has_header, note = _has_header(first, layout, named)
    columns = _columns(first[0], has_header=has_header, width=max(map(len, first)))

    def rows() -> Iterator[Row]:
        with open_text(path, encoding) as lines:
            yield from _table_rows(_cells(lines, delimiter), columns, skip=int(has_header))

    return Table(columns, rows, (*notes, *note))


def _encoding_of(path: Path, layout: Layout) -> tuple[str, list[str]]:
    if layout.encoding is not None:
        return layout.encoding, []
    encoding = guess_encoding(path)
    return encoding, [] if encoding.startswith("utf-8") else [f"guessed encoding {encoding} (--encoding)"]


def _delimiter_of(path: Path, encoding: str) -> str:
    """Tabs in .tsv and .txt; in .csv what the first line has most of."""
    if path.suffix.lower() != ".csv":
        return "\t"
    with open_text(path, encoding) as lines:
        first = next((line for line in lines if line.strip()), "")
    return max(DELIMITERS, key=first.count)


def _cells(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str], str]]:
    """Line, cells and problem of each record. Quotes count in CSV only: a title in a tab-separated file may start with
    one."""
    csv.field_size_limit(MAX_FIELD)
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # the reader goes on with the next line
            yield line, [], f"not CSV: {error}"
            continue
        if any(cell.strip() for cell in cells):
            yield line, cells, ""


def _has_header(first: Sequence[Sequence[str]], layout: Layout, named: Fields) -> tuple[bool, list[str]]:
    if layout.has_header is not None:
        return layout.has_header, []
    if looks_like_header(first, named):
        return True, []
    return False, [f"guessed no header: the columns are called {unnamed(0)!r}, {unnamed(1)!r}, ... (--header)"]


def _columns(first: Sequence[str], *, has_header: bool, width: int) -> tuple[str, ...]:
    if not has_header:
        return tuple(unnamed(index) for index in range(width))
    columns: list[str] = []
    for index, cell in enumerate(first):
        name = cell.strip() or unnamed(index)
        again = sum(column == name or column.startswith(f"{name} (") for column in columns)
        columns.append(f"{name} ({again + 1})" if again else name)
    return tuple(columns)


def _table_rows(
    records: Iterable[tuple[int, Sequence[Any], str]], columns: Sequence[str], *, skip: int
) -> Iterator[Row]:
    for line, cells, problem in islice(records, skip, None):
        if not problem and any(cell not in (None, "") for cell in cells[len(columns) :]):
            problem = f"has {len(cells)} columns instead of {len(columns)}; a text with a delimiter needs quotes"
        yield Row(line, {} if problem else dict(zip(columns, cells, strict=False)), problem)


# JSON


def _open_json(path: Path, layout: Layout) -> Table:
    encoding, notes = _encoding_of(path, layout)
    document = None if path.suffix.lower() != ".json" else _json_document(path, encoding)

    def rows() -> Iterator[Row]:
        if document is not None:
            yield from (_json_row(number, record) for number, record in enumerate(document, start=1))
            return
        with open_text(path, encoding) as lines:
            yield from _json_lines(lines)

    if label_studio.is_export(document or []):
        assert document is not None
        flat = list(label_studio.flatten(document))
        names = label_studio.controls(document)
        note = f"guessed a Label Studio export with the controls {', '.join(names) or 'none'}"
        return Table(_keys(flat), lambda: iter(flat), (*notes, note), names[0] if len(names) == 1 else None)
    sample = list(islice(rows(), SAMPLE))
    if sample and all(row.problem for row in sample):
        raise DatasetError(f"{path}: {sample[0].problem} (line {sample[0].line}), as all of the first {len(sample)}")
    return Table(_keys(sample), rows, tuple(notes))


def _json_document(path: Path, encoding: str) -> list[Any] | None:
    """The records of a file that is one JSON document; None for one value per line."""
    with open_text(path, encoding) as lines:
        try:
            document = json.load(lines)
        except (ValueError, RecursionError):
            return None
    if isinstance(document, dict):
        lists = [value for value in document.values() if isinstance(value, list) and value]
        objects = [value for value in lists if all(isinstance(one, dict) for one in value)]
        return objects[0] if len(objects) == 1 else [document]
    return document if isinstance(document, list) else [document]


def _json_lines(lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            yield Row(number, {}, "is not JSON")
        else:
            yield _json_row(number, record)


def _json_row(number: int, record: Any) -> Row:
    if isinstance(record, dict):
        return Row(number, record)
    if isinstance(record, list):
        return Row(number, {unnamed(index): value for index, value in enumerate(record)})
    return Row(number, {}, "is not a JSON object")


def _keys(rows: Iterable[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for row in rows for key in row.values))


# workbooks and parquet


def _open_binary(path: Path, layout: Layout, named: Fields) -> Table:
    if path.suffix.lower() == ".parquet":
        return Table(workbooks.parquet_columns(path), lambda: workbooks.parquet_rows(path))
    sheet, notes = workbooks.find_sheet(path, layout.sheet)
    first = list(islice(workbooks.sheet_cells(path, sheet), 50))
    titles = _count_titles([cells for _, cells in first])
    first = first[titles:]
    if titles:
        notes.append(f"guessed {titles} title rows above the header")
    if not first:
        return Table((), lambda: iter(()))
    texts = [["" if cell is None else str(cell) for cell in cells] for _, cells in first]
    has_header, note = _has_header(texts, layout, named)
    columns = _columns(texts[0], has_header=has_header, width=max(map(len, texts)))

    def rows() -> Iterator[Row]:
        records = ((number, cells, "") for number, cells in workbooks.sheet_cells(path, sheet))
        yield from _table_rows(records, columns, skip=titles + has_header)

    return Table(columns, rows, (*notes, *note))


def _count_titles(rows: Sequence[Sequence[Any]]) -> int:
    """Rows of one cell above rows of several: the title of a sheet, in merged cells."""
    filled = [sum(cell is not None for cell in row) for row in rows]
    count = next((index for index, num in enumerate(filled) if num > 1), 0)
    return count if count <= 5 else 0
