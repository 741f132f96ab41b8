"""The rows of a corpus: JSON lines, CSV or parquet, on this machine or in an object store, read from any row on.

A corpus is read one record at a time, so that it may be larger than memory. A record is cheap: it is what is between
two rows of the file. Only the rows that are computed are parsed.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import PurePath
from typing import IO, Any, Protocol

import fsspec
import orjson

from service.errors import DatasetError
from service.tools.data.files import MAX_FIELD
from service.tools.data.workbooks import require

FORMATS = ("jsonl", "csv", "parquet")
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
MAX_LINE = 16 * 2**20
"""Bytes of a line; of a longer one the rest is skipped, and the row is a bad one."""
BUFFER_BYTES = 2**20
PARQUET_ROWS = 256
"""That are made Python objects at a time."""


@dataclass(frozen=True, slots=True)
class Place:
    """Before a row of a corpus: the rows and the bytes that are before it. Bytes are not counted in parquet files."""

    row: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """A row as it is in the file: a line, the cells of a line, or the values of a parquet row; `end` is after it.

    `problem` says what is wrong with it as a whole.
    """

    end: Place
    data: Any
    num_bytes: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """The values of a record by column. With a `problem` there are none; `number` counts from 1."""

    number: int
    values: Mapping[str, Any]
    problem: str = ""


class Source(Protocol):
    """A corpus. `size` and `position` count bytes, or the rows of a parquet file: what `unit` says."""

    size: int
    unit: str

    def records(self, start: Place = ...) -> Iterator[Record]:
        """The records from a place on. Raises DatasetError."""

    def row(self, record: Record) -> Row: ...

    def position(self, place: Place) -> int: ...

    def near(self, row: int) -> Place:
        """A place that is found at once, before a row or further ahead."""


def format_of(uri: str) -> str | None:
    """The format that the suffix of a path or URL names."""
    return SUFFIXES.get(PurePath(uri).suffix.lower())


def open_source(uri: str, encoding: str = "utf-8") -> Source:
    """Raises DatasetError: there is no such file, or its format is not known."""
    match format_of(uri):
        case "jsonl":
            return JsonLines(uri, encoding)
        case "csv":
            return Csv(uri, encoding)
        case "parquet":
            return Parquet(uri)
        case _:
            raise DatasetError(f"{uri}: wanted a file named {', '.join(SUFFIXES)}")


def file_system(uri: str) -> tuple[Any, str]:
    """The file system of a path or URL by fsspec, and the path in it. Raises DatasetError."""
    try:
        system, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:  # the package of the object store is not installed, or it is unknown
        raise DatasetError(f"{uri}: {error}") from None
    return system, str(path)


def exists(uri: str) -> bool:
    system, path = file_system(uri)
    return bool(system.exists(path))


def remove(uri: str) -> None:
    """Removes a file that may be there."""
    system, path = file_system(uri)
    with suppress(FileNotFoundError):
        system.rm_file(path)


@contextmanager
def open_binary(uri: str) -> Iterator[IO[bytes]]:
    system, path = file_system(uri)
    try:
        with system.open(path, "rb") as file:
            yield file
    except OSError as error:
        raise DatasetError(f"{uri}: {error.strerror or error}") from None


def identity_of(uri: str) -> dict[str, Any]:
    """What says whether a file was changed."""
    system, path = file_system(uri)
    try:
        info = system.info(path)
    except OSError as error:
        raise DatasetError(f"{uri}: {error.strerror or error}") from None
    if info["type"] != "file":
        raise DatasetError(f"{uri}: is a folder")
    found = {name: str(info[name]) for name in ("size", "mtime", "ETag", "etag", "LastModified") if info.get(name)}
    return {"path": str(path), "size": 0, **found}


class _Text:
    """What files of lines have in common."""

    unit = "B"

    def __init__(self, uri: str, encoding: str) -> None:
        self.size = int(identity_of(uri)["size"])
        self._uri = uri
        try:
            "".encode(encoding)
        except LookupError:
            raise DatasetError(f"--encoding {encoding}: Python has no encoding of this name") from None
        if "\n".encode(encoding) != b"\n":
            raise DatasetError(f"--encoding {encoding}: lines cannot be found in it; convert the file to UTF-8")
        self._encoding = encoding

    def position(self, place: Place) -> int:
        return place.offset

    def near(self, row: int) -> Place:
        return Place()

    @contextmanager
    def _open(self, offset: int) -> Iterator[IO[bytes]]:
        with open_binary(self._uri) as raw, io.BufferedReader(raw, BUFFER_BYTES) as file:  # type: ignore[type-var]
            file.seek(offset)
            yield file


class JsonLines(_Text):
    """A row for each line, blank ones, too."""

    def records(self, start: Place = Place()) -> Iterator[Record]:
        row, offset = start.row, start.offset
        with self._open(offset) as file:
            while line := file.readline(MAX_LINE):
                problem, size = "", len(line)
                while not line.endswith(b"\n") and (rest := file.readline(MAX_LINE)):
                    size += len(rest)
                    problem = f"the line has more than {MAX_LINE} bytes"
                    line = line[:1024] + (b"\n" if rest.endswith(b"\n") else b"")
                row, offset = row + 1, offset + size
                yield Record(Place(row, offset), line, len(line), problem)

    def row(self, record: Record) -> Row:
        number = record.end.row
        if record.problem:
            return Row(number, {}, record.problem)
        try:
            text = record.data.decode(self._encoding).removeprefix("\ufeff" if number == 1 else "")
        except UnicodeDecodeError:
            return Row(number, {}, f"the line is not {self._encoding} (--encoding)")
        if not text.strip():
            return Row(number, {}, "the line is blank")
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            return Row(number, {}, "the line is not JSON")
        if isinstance(value, str):
            value = {"text": value}
        return Row(number, value) if isinstance(value, dict) else Row(number, {}, "the line is no JSON object")


class Csv(_Text):
    """A row for each line with cells, after the first one, which names the columns. A cell in quotes may have lines."""

    def __init__(self, uri: str, encoding: str) -> None:
        super().__init__(uri, encoding)
        first = next(self._lists(Place()), None)
        if first is None or first.problem:
            raise DatasetError(f"{uri}: wanted a first line with the names of the columns")
        self.columns = [cell.strip() for cell in first.data]
        self._first = Place(0, first.end.offset)

    def records(self, start: Place = Place()) -> Iterator[Record]:
        return self._lists(start if start.row else self._first)

    def _lists(self, start: Place) -> Iterator[Record]:
        csv.field_size_limit(MAX_FIELD)
        with self._open(start.offset) as file:
            lines = _CountedLines(file, self._encoding, start.offset)
            reader, row, before = csv.reader(lines), start.row, start.offset
            while True:
                problem, cells = "", []
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:  # the reader goes on with the next line
                    problem = f"not CSV: {error}"
                if cells or problem:
                    row += 1
                    yield Record(Place(row, lines.offset), cells, lines.offset - before, problem)
                before = lines.offset

    def row(self, record: Record) -> Row:
        number, cells = record.end.row, record.data
        if record.problem:
            return Row(number, {}, record.problem)
        if len(cells) > len(self.columns) and any(cells[len(self.columns) :]):
            return Row(number, {}, f"has {len(cells)} columns instead of {len(self.columns)}")
        return Row(number, dict(zip(self.columns, cells, strict=False)))


class _CountedLines:
    """Lines as text, and the bytes up to the end of the last one. Bytes of another encoding become lone surrogates."""

    def __init__(self, file: IO[bytes], encoding: str, offset: int) -> None:
        self._file = file
        self._encoding = encoding
        self.offset = offset

    def __iter__(self) -> _CountedLines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_LINE)
        if not line:
            raise StopIteration
        text = line.decode(self._encoding, errors="surrogateescape")
        text = text.removeprefix("\ufeff") if not self.offset else text
        self.offset += len(line)
        return text


class Parquet:
    """A row for each row. A file is read by its row groups, of which those before the place are skipped."""

    unit = "row"

    def __init__(self, uri: str) -> None:
        self._uri = uri
        with self._open() as file:
            self.size = file.metadata.num_rows
            self.schema = file.schema_arrow

    def position(self, place: Place) -> int:
        return place.row

    def near(self, row: int) -> Place:
        return Place(row)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            from pyarrow.parquet import ParquetFile
        except ImportError:
            raise require(PurePath(self._uri), "pyarrow") from None
        try:
            with open_binary(self._uri) as file:
                yield ParquetFile(file)
        except ValueError as error:  # pyarrow's errors are of this class, or OSError
            raise DatasetError(f"{self._uri}: cannot be read as parquet: {error}") from None

    def records(self, start: Place = Place()) -> Iterator[Record]:
        with self._open() as file:
            sizes = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
            row, groups = _skip_groups(sizes, start.row)
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, row_groups=groups):
                size = batch.nbytes // max(1, batch.num_rows)
                for values in batch.to_pylist():
                    row += 1
                    if row > start.row:
                        yield Record(Place(row), values, size)

    def row(self, record: Record) -> Row:
        return Row(record.end.row, record.data)


def _skip_groups(sizes: Sequence[int], row: int) -> tuple[int, list[int]]:
    """The rows before the group of a row, and the groups from that one on."""
    before = 0
    for index, size in enumerate(sizes):
        if before + size > row:
            return before, list(range(index, len(sizes)))
        before += size
    return before, []


def raw_of(record: Record, encoding: str) -> Any:
    """What the side file shows of a record: its line, its cells or its values, as JSON can hold it."""
    if isinstance(record.data, bytes):
        return record.data.rstrip(b"\r\n").decode(encoding, errors="backslashreplace")
    text = json.dumps(record.data, default=str)
    return json.loads(text)
