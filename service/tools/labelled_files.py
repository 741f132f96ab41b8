"""Files of labelled rows: CSV, JSON lines and Excel, written row by row, with the place up to which they are finished.

While CSV and JSON lines are written, `FILE.progress` beside them has the number of finished rows and bytes, so that an
interrupted run goes on from there. It is removed at the end.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from service.errors import DatasetError
from service.host import install_command
from service.tools.answer_files import CSV_ENCODING

SUFFIXES = (".csv", ".jsonl", ".xlsx")
MAX_CELL = 32_767
"""Characters of a cell of Excel."""


class Output(Protocol):
    """`columns` are those of the input, `added` those after them."""

    def write(self, rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
        """Appends rows: the values of the input, and those that are added."""

    def close(self) -> None: ...


class Progress:
    """The finished part of an output, for the run that `identity` describes.

    Raises:
        DatasetError: the output exists and is finished, or belongs to another run; `overwrite` starts again.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any], *, overwrite: bool) -> None:
        self._file = out.with_name(f"{out.name}.progress")
        self._identity = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.rows, self.bytes = 0, 0
        self.state: dict[str, Any] = {}
        if overwrite:
            self._file.unlink(missing_ok=True)
        elif self._file.exists():
            self._read(out)
        elif out.exists():
            raise DatasetError(f"{out}: exists; write it again with --overwrite, or name another file with --out")

    def _read(self, out: Path) -> None:
        try:
            content = json.loads(self._file.read_text(encoding="utf-8"))
            is_same = content["identity"] == self._identity
            rows, size, state = int(content["rows"]), int(content["bytes"]), dict(content["state"])
        except (OSError, ValueError, KeyError, TypeError):
            raise DatasetError(f"{self._file}: cannot be read; start again with --overwrite") from None
        if not is_same:
            raise DatasetError(f"{out}: was begun with another input, model or flags; start again with --overwrite")
        if out.exists() and out.stat().st_size >= size:
            self.rows, self.bytes, self.state = rows, size, state

    def save(self, rows: int, size: int, state: Mapping[str, Any]) -> None:
        """Called after the rows are in the file. Replaced in one step."""
        part = self._file.with_name(f"{self._file.name}.part")
        content = {"identity": self._identity, "rows": rows, "bytes": size, "state": state}
        part.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        part.replace(self._file)

    def end(self) -> None:
        self._file.unlink(missing_ok=True)


class TextOutput:
    """CSV or JSON lines, from the byte `start` on."""

    def __init__(self, out: Path, columns: Sequence[str], added: Sequence[str], start: int = 0) -> None:
        self._columns = [*columns, *added]
        self._is_csv = out.suffix.lower() == ".csv"
        self._file = out.open("r+b" if start else "wb")
        self._file.truncate(start)
        self._file.seek(start)
        if not start and self._is_csv:
            self._file.write(_csv_lines([self._columns]).encode(CSV_ENCODING))

    def write(self, rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
        if self._is_csv:
            lines = _csv_lines(
                [[_cell({**values, **more}.get(name)) for name in self._columns] for values, more in rows]
            )
        else:
            lines = "".join(json.dumps({**values, **more}, ensure_ascii=False) + "\n" for values, more in rows)
        self._file.write(lines.encode(errors="backslashreplace"))
        self._file.flush()

    @property
    def size(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


class WorkbookOutput:
    """Excel; the file is written by `close`. Texts are texts, even if they begin with =."""

    def __init__(self, out: Path, columns: Sequence[str], added: Sequence[str]) -> None:
        try:
            from openpyxl import Workbook
        except ImportError:
            raise DatasetError(
                f"{out}: .xlsx needs the package openpyxl: {install_command('openpyxl')}; or write .csv"
            ) from None
        self._out = out
        self._columns = [*columns, *added]
        self._book = Workbook(write_only=True)
        self._sheet = self._book.create_sheet("predictions")
        self._append(self._columns)

    def write(self, rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
        for values, more in rows:
            self._append([_cell({**values, **more}.get(name)) for name in self._columns])

    def _append(self, values: Sequence[Any]) -> None:
        from openpyxl.cell import WriteOnlyCell
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

        cells = []
        for value in values:
            if isinstance(value, str):
                cell = WriteOnlyCell(self._sheet, ILLEGAL_CHARACTERS_RE.sub("", value)[:MAX_CELL])
                cell.data_type = "s"
                cells.append(cell)
            else:
                cells.append(value)
        self._sheet.append(cells)

    def close(self) -> None:
        self._book.save(self._out)


def _cell(value: Any) -> Any:
    """Lists and objects as JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict | tuple) else value


def _csv_lines(rows: Sequence[Sequence[Any]]) -> str:
    lines = io.StringIO(newline="")
    csv.writer(lines).writerows(rows)
    return lines.getvalue()
