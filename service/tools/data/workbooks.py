"""Rows of Excel workbooks and parquet files, by openpyxl and pyarrow, which are optional."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, time
from pathlib import Path, PurePath
from typing import Any
from zipfile import BadZipFile

from service.errors import DatasetError
from service.host import install_command
from service.tools.data.rows import Row

DAMAGED = (BadZipFile, zlib.error, KeyError, ValueError, SyntaxError, EOFError, OSError)
"""What openpyxl raises while it reads a file that is no workbook; a SyntaxError is one of XML."""


def require(path: PurePath, package: str) -> DatasetError:
    """The error for a package that is not installed."""
    return DatasetError(
        f"{path}: {path.suffix} needs the package {package}: {install_command(package)}; or save the file as CSV"
    )


@contextmanager
def _workbook(path: Path) -> Iterator[Any]:
    """Values of formulas are those that the program stored which saved the file."""
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise require(path, "openpyxl") from None
    try:
        book = load_workbook(path, read_only=True, data_only=True)
    except DAMAGED as error:
        raise DatasetError(f"{path}: cannot be read as a workbook: {error}") from None
    try:
        yield book
    finally:
        book.close()


def find_sheet(path: Path, name: str | None) -> tuple[str, list[str]]:
    """The name of the sheet to read, and a sentence if there are several and it was guessed."""
    with _workbook(path) as book:
        names = [sheet.title for sheet in book.worksheets]
    if not names:
        raise DatasetError(f"{path}: has no sheet of cells")
    if name is not None and name not in names:
        raise DatasetError(f"--sheet {name}: no such sheet; the sheets are {', '.join(names)}")
    notes = [f"guessed sheet {names[0]!r} of {', '.join(names)} (--sheet)"] if name is None and len(names) > 1 else []
    return name or names[0], notes


def sheet_cells(path: Path, sheet: str) -> Iterator[tuple[int, list[Any]]]:
    """Number and cells of each row that is not empty."""
    with _workbook(path) as book:
        cells = book[sheet]
        cells.reset_dimensions()  # some programs store a wrong size
        for number, row in enumerate(_checked(path, cells.iter_rows(values_only=True)), start=1):
            values = [_plain(cell) for cell in row]
            while values and values[-1] is None:
                values.pop()
            if any(value is not None for value in values):
                yield number, values


def _checked(path: Path, rows: Iterable[Any]) -> Iterator[Any]:
    try:
        yield from rows
    except DAMAGED as error:
        raise DatasetError(f"{path}: cannot be read as a workbook: {error}") from None


def parquet_columns(path: Path) -> tuple[str, ...]:
    return tuple(_parquet(path).schema_arrow.names)


def parquet_rows(path: Path) -> Iterator[Row]:
    number = 0
    try:
        for batch in _parquet(path).iter_batches(batch_size=1000):
            for record in batch.to_pylist():
                number += 1
                yield Row(number, {name: _plain(value) for name, value in record.items()})
    except (OSError, ValueError) as error:  # pyarrow's errors are of these classes
        raise DatasetError(f"{path}: cannot be read as parquet: {error}") from None


def _parquet(path: Path) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise require(path, "pyarrow") from None
    try:
        return ParquetFile(path)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read as parquet: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer():  # a workbook has no whole numbers
        return int(value)
    if isinstance(value, str) and not value.strip():
        return None
    return value
