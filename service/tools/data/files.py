"""Reads data files into plain records: JSON, JSON lines, CSV and tab-separated text.

`read_records` and `read_json` read a known layout strictly; `read_any` accepts every layout.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar

from service.errors import DatasetError

T = TypeVar("T")
Format = Literal["csv", "json", "tabs"]
MAX_FIELD = 1_000_000
"""Characters of a field of CSV; a longer one mostly has a quote that is not closed."""


class RecordError(ValueError):
    """A record lacks a field or has a bad value; `take_each` adds the file and the number of the record."""


def find(data: Path, patterns: tuple[str, ...], split: str) -> Path:
    """The first of `patterns` ({split} filled in) that is a file below `data`.

    Raises:
        DatasetError: none of them exists; lists every path tried.
    """
    tried = [data / pattern.format(split=split) for pattern in patterns]
    for path in tried:
        if path.is_file():
            return path
    raise DatasetError(f"no such data file: {' or '.join(map(str, tried))}")


def read_records(path: Path) -> Iterator[Any]:
    """One dict per line of JSON lines or CSV, one list of columns per line of tab-separated text.

    Raises:
        DatasetError: the file does not exist, is not UTF-8, or a line is not in the format of the file's suffix.
    """
    with _open(path) as lines:
        match _format_of(path):
            case "csv":
                yield from _csv_rows(path, csv.DictReader(lines))
            case "json":
                yield from _json_lines(path, lines)
            case "tabs":
                yield from _columns(lines)


def read_json(path: Path) -> Iterator[Any]:
    """The records of a file that is one JSON list."""
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise DatasetError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, list):
        raise DatasetError(f"{path}: wanted a JSON list, found {type(content).__name__}")
    return iter(content)


def read_any(path: Path) -> Iterator[Any]:
    """The records of a file of unknown layout: JSON is one document or one per line, a line of CSV is a list of columns
    (the header is not known to be one), bytes that are not UTF-8 are replaced.

    Raises:
        DatasetError: the file does not exist, or is neither JSON nor JSON lines although its suffix says so.
    """
    with _open(path, is_strict=False) as lines:
        match _format_of(path):
            case "csv":
                yield from _csv_rows(path, csv.reader(lines))
            case "json":
                yield from _json_document_or_lines(path, lines)
            case "tabs":
                yield from _columns(lines)


def read_text(path: Path) -> str:
    """The whole of a file."""
    with _open(path) as lines:
        return lines.read()


def take_each(path: Path, records: Iterable[Any], take: Callable[[Any], Iterable[T]]) -> Iterator[T]:
    """Everything that `take` makes of each record of a file.

    Raises:
        DatasetError: `take` raised RecordError; gives the file and the number of the record, from 1.
    """
    for number, record in enumerate(records, start=1):
        try:
            taken = list(take(record))
        except RecordError as error:
            raise DatasetError(f"{path}, record {number}: {error}") from None
        yield from taken


def _format_of(path: Path) -> Format:
    """By the suffix; anything else than CSV and JSON is read as tab-separated text."""
    match path.suffix.lower():
        case ".csv":
            return "csv"
        case ".json" | ".jsonl":
            return "json"
        case _:
            return "tabs"


@contextmanager
def _open(path: Path, *, is_strict: bool = True) -> Iterator[TextIO]:
    """Some publishers start a file with a byte-order mark. Strict keeps the line ends inside a quoted CSV field; not
    strict makes them \\n, and replaces bytes that are not UTF-8."""
    errors, newline = ("strict", "") if is_strict else ("replace", None)
    try:
        with path.open(encoding="utf-8-sig", errors=errors, newline=newline) as lines:
            yield lines
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8: {error.reason}") from None
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from None


def _csv_rows(path: Path, rows: Any) -> Iterator[Any]:
    """`rows` is a reader of the csv module."""
    csv.field_size_limit(MAX_FIELD)
    try:
        yield from rows
    except csv.Error as error:
        raise DatasetError(f"{path}:{rows.line_num + 1}: not CSV: {error}") from None


def _json_document_or_lines(path: Path, lines: TextIO) -> Iterator[Any]:
    try:
        document = json.load(lines)
    except ValueError:
        lines.seek(0)
        yield from _json_lines(path, lines, "neither JSON nor JSON lines")
    else:
        yield from document if isinstance(document, list) else [document]


def _json_lines(path: Path, lines: Iterable[str], problem: str = "not JSON") -> Iterator[Any]:
    """A line ends with \\n: str.splitlines would also split at separators inside a text."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except ValueError as error:
            raise DatasetError(f"{path}:{number}: {problem}: {error}") from None


def _columns(lines: Iterable[str]) -> Iterator[list[str]]:
    return (line.rstrip("\r\n").split("\t") for line in lines if line.strip())
