"""Files of answered rows: JSON lines, CSV or parquet.

A row has its number, the columns of the input that are kept, the fields of its result or the error. JSON lines hold
them as they are. CSV and parquet have a column for each; what is no number, text or vector is JSON there.
"""

from __future__ import annotations

import csv
import io
import json
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, Any, Final, Literal, Protocol, Union, get_args, get_origin, get_type_hints

import orjson

from service.api.protocols.native import ROUTES
from service.tools.data.workbooks import require

ROW, ERROR = "row", "error"
NUMBERS: Final[dict[Any, str]] = {float: "float64", int: "int64", bool: "bool"}

Columns = Mapping[str, Any]
"""The type of each column of an output: one of NUMBERS, "string", "vector", "json", or that of a parquet input."""
OutputRow = Mapping[str, Any]


def result_columns(task: str) -> dict[str, str]:
    """The fields of a task's results, in all their forms."""
    [reply] = [route.reply for route in ROUTES if route.task == task]
    [results] = get_args(reply.model_fields["results"].annotation)
    columns: dict[str, str] = {}
    for result in get_args(results) or (results,):
        columns |= {name: _type_of(hint) for name, hint in get_type_hints(result).items()}
    return columns


def _type_of(hint: Any) -> str:
    if hint in NUMBERS:
        return NUMBERS[hint]
    if hint is str or get_origin(hint) is Literal:
        return "string"
    parts = [part for part in get_args(hint) if part is not type(None)]
    if get_origin(hint) in (Union, types.UnionType) and len(parts) == 1:
        return _type_of(parts[0])
    return "vector" if get_origin(hint) is tuple and parts[0] is float else "json"


def kept_name(name: str, results: Mapping[str, str]) -> str:
    """The name in the output of a column of the input."""
    return f"input_{name}" if name in (ROW, ERROR, *results) else name


class Writer(Protocol):
    def write(self, rows: Sequence[OutputRow]) -> None: ...

    def close(self) -> None: ...


def open_writer(file: Path, format_: str, columns: Columns) -> Writer:
    """Raises DatasetError: pyarrow is missing."""
    match format_:
        case "jsonl":
            return JsonLinesWriter(file)
        case "csv":
            return CsvWriter(file, list(columns))
        case _:
            return ParquetWriter(file, columns)


def json_line(value: Any) -> bytes:
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a lone surrogate, or a number of more than 64 bits
        return json.dumps(value, default=str).encode() + b"\n"


class JsonLinesWriter:
    def __init__(self, file: Path) -> None:
        self._file = file.open("wb")

    def write(self, rows: Sequence[OutputRow]) -> None:
        self._file.write(b"".join([json_line(row) for row in rows]))

    def close(self) -> None:
        self._file.close()


class CsvWriter:
    def __init__(self, file: Path, columns: Sequence[str]) -> None:
        self._file = file.open("wb")
        self._columns = columns
        self._file.write(csv_lines([columns]))

    def write(self, rows: Sequence[OutputRow]) -> None:
        self._file.write(csv_lines([[_plain(row.get(name)) for name in self._columns] for row in rows]))

    def close(self) -> None:
        self._file.close()


def csv_lines(rows: Sequence[Sequence[Any]]) -> bytes:
    lines = io.StringIO(newline="")
    csv.writer(lines).writerows(rows)
    return lines.getvalue().encode(errors="backslashreplace")


def _plain(value: Any) -> Any:
    """Lists and objects as JSON."""
    return json_line(value)[:-1].decode() if isinstance(value, list | dict | tuple) else value


class ParquetWriter:
    """A row group for each call of `write`."""

    def __init__(self, file: Path, columns: Columns) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise require(file, "pyarrow") from None
        types_of = {"json": pyarrow.string(), "vector": pyarrow.list_(pyarrow.float32())}
        fields = [(name, types_of.get(kind, kind) if isinstance(kind, str) else kind) for name, kind in columns.items()]
        self._arrow = pyarrow
        self._columns = columns
        self._schema = pyarrow.schema(fields)
        self._writer = parquet.ParquetWriter(file, self._schema)

    def write(self, rows: Sequence[OutputRow]) -> None:
        columns = []
        for field, kind in zip(self._schema, self._columns.values(), strict=True):
            values = [row.get(field.name) for row in rows]
            if isinstance(kind, str) and kind == "json":
                values = [_as_text(value) for value in values]
            columns.append(self._arrow.array(values, type=field.type))
        self._writer.write_table(self._arrow.Table.from_arrays(columns, schema=self._schema))

    def append(self, file: IO[bytes]) -> None:
        """Appends the rows of a parquet file with the same columns."""
        for batch in self._arrow.parquet.ParquetFile(file).iter_batches():
            self._writer.write_batch(batch)

    def close(self) -> None:
        self._writer.close()


def join_parquet(parts: Iterable[Callable[[], IO[bytes]]], file: Path, columns: Columns) -> None:
    """Writes the rows of all parts, each of which is opened in its turn, into one file."""
    with closing(ParquetWriter(file, columns)) as writer:
        for open_part in parts:
            with open_part() as part:
                writer.append(part)


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json_line(value)[:-1].decode()
