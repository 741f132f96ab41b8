"""Reads data files as their publishers laid them out into plain records. Knows no tasks."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

from service.errors import DatasetError

T = TypeVar("T")


class RecordError(ValueError):
    """A record lacks a field or holds a value that is not allowed; `take_each` adds which record."""


def find(data: Path, patterns: tuple[str, ...], split: str) -> Path:
    """The first of `patterns` ({split} filled in) that is a file below `data`.

    Raises:
        DatasetError: none of them exists; names all that were tried.
    """
    tried = [data / pattern.format(split=split) for pattern in patterns]
    for path in tried:
        if path.is_file():
            return path
    raise DatasetError(f"no such data file: {' or '.join(map(str, tried))}")


def read_records(path: Path) -> Iterator[Any]:
    """One dict a line of JSON lines or CSV, one list of columns a line of tab-separated text.

    Raises:
        DatasetError: the file is not there, or a line is not what the ending of the file's name promises.
    """
    with _open(path) as lines:
        if path.suffix == ".csv":
            yield from _csv_rows(path, lines)
        elif path.suffix in (".json", ".jsonl"):
            yield from _json_lines(path, lines)
        else:
            yield from (line.rstrip("\r\n").split("\t") for line in lines if line.strip())


def read_json(path: Path) -> Iterator[Any]:
    """The records of a file that is one JSON list."""
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise DatasetError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, list):
        raise DatasetError(f"{path}: wanted a JSON list, found {type(content).__name__}")
    return iter(content)


def read_text(path: Path) -> str:
    """The whole of a file."""
    with _open(path) as lines:
        return lines.read()


def take_each(path: Path, records: Iterable[Any], take: Callable[[Any], Iterable[T]]) -> Iterator[T]:
    """All that `take` makes of each record of a file.

    Raises:
        DatasetError: `take` raised RecordError; names the file and the number of the record, from 1.
    """
    for number, record in enumerate(records, start=1):
        try:
            taken = list(take(record))
        except RecordError as error:
            raise DatasetError(f"{path}, record {number}: {error}") from None
        yield from taken


@contextmanager
def _open(path: Path) -> Iterator[TextIO]:
    """Some publishers begin a file with a byte-order mark; line ends inside a quoted CSV field stay as they are."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            yield lines
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8: {error.reason}") from None
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from None


def _csv_rows(path: Path, lines: Iterable[str]) -> Iterator[dict[str, str]]:
    rows = csv.DictReader(lines)
    try:
        yield from rows
    except csv.Error as error:
        raise DatasetError(f"{path}:{rows.line_num + 1}: not CSV: {error}") from None


def _json_lines(path: Path, lines: Iterable[str]) -> Iterator[Any]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except ValueError as error:
            raise DatasetError(f"{path}:{number}: not JSON: {error}") from None
