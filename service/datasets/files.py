"""Reads data files as their publishers laid them out into plain records. Knows no tasks."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from service.errors import ServiceError


class DatasetError(ServiceError):
    """A data set that is not there or cannot be read."""

    code = "dataset_error"


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
        DatasetError: a line is not what the ending of the file's name promises.
    """
    with path.open(encoding="utf-8-sig", newline="") as lines:
        if path.suffix == ".csv":
            yield from csv.DictReader(lines)
        elif path.suffix in (".json", ".jsonl"):
            yield from _json_lines(path, lines)
        else:
            yield from (line.rstrip("\r\n").split("\t") for line in lines if line.strip())


def read_json(path: Path) -> Any:
    """A file that is one JSON document."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(f"{path}: not JSON: {error}") from None


def _json_lines(path: Path, lines: Iterator[str]) -> Iterator[Any]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except ValueError as error:
            raise DatasetError(f"{path}:{number}: not JSON: {error}") from None
