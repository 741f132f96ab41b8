"""The output of a run in parts: files of the answers to neighbouring rows, each of which is there whole or not at all.

A part is named after its rows, `part-FIRST-END`, so that the names alone say what is left to do, for this run and for
one that goes on after a kill, on one machine or on many. The bad rows of a part are beside it, in `bad-FIRST-END`. That
file is written first, and does not count without its part. Two parts never share a row: of those that do, the first
counts.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import orjson
from fsspec.implementations.local import LocalFileSystem

from service.errors import DatasetError
from service.stores.disk import sync_folder
from service.tools.corpora.source import file_system, remove
from service.tools.corpora.writers import Columns, csv_lines, join_parquet

RUN = "run.json"
_NAME = re.compile(r"(part|bad)-(\d{12})-(\d{12})\.(jsonl|csv|parquet)")
_PREFIX = ".unfinished-"


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """The rows of a part: `first` to `end`, from 0, without `end`."""

    first: int
    end: int

    def name(self, kind: str, format_: str) -> str:
        return f"{kind}-{self.first:012d}-{self.end:012d}.{format_}"


class Parts:
    """The folder of the parts, on this machine or in an object store."""

    def __init__(self, folder: str, format_: str) -> None:
        self._uri = folder
        self._format = format_
        self._system, self._path = file_system(folder)
        self.is_local = isinstance(self._system, LocalFileSystem)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder. Of local ones, only one run at a time is here: another one gets a DatasetError."""
        self._make_folder()
        if not self.is_local:
            yield
            return
        descriptor = os.open(f"{self._path}/.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise DatasetError(f"{self._uri}: another run writes there") from None
        finally:
            os.close(descriptor)

    def _make_folder(self) -> None:
        try:
            self._system.makedirs(self._path, exist_ok=True)
        except OSError as error:
            raise DatasetError(f"{self._uri}: {error.strerror or error}") from None

    # the run that they belong to

    def read_run(self) -> dict[str, Any] | None:
        """What `write_run` has written. Raises DatasetError."""
        try:
            found: dict[str, Any] = orjson.loads(self._system.cat_file(f"{self._path}/{RUN}"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            raise DatasetError(f"{self._uri}/{RUN}: cannot be read; start again with --overwrite") from None
        return found

    def write_run(self, content: Mapping[str, Any]) -> None:
        file = self.new_file("json")
        file.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))
        self._put(file, RUN)

    # parts

    def done(self) -> list[Span]:
        """The rows that are answered, in order."""
        spans: list[Span] = []
        for span in sorted(Span(int(first), int(end)) for kind, first, end, _ in self._names() if kind == "part"):
            if not spans or span.first >= spans[-1].end:
                spans.append(span)
        return spans

    def _names(self) -> list[tuple[str, ...]]:
        names = (PurePath(path).name for path in self._paths())
        return [found.groups() for found in map(_NAME.fullmatch, names) if found]

    def _paths(self) -> list[str]:
        """All files in the folder. An object store has no folder before there is a file in it."""
        self._system.invalidate_cache()
        try:
            found: list[str] = self._system.ls(self._path, detail=False)
        except FileNotFoundError:
            return []
        return found

    def new_file(self, suffix: str) -> Path:
        """A file of this machine that becomes one of the folder: beside it, or where temporary files are."""
        folder = Path(self._path if self.is_local else tempfile.gettempdir())
        return folder / f"{_PREFIX}{uuid.uuid4().hex}.{suffix}"

    def put(self, span: Span, answers: Path, bad: Path | None) -> None:
        """Adds a part; it is there once this returns, whatever happens then."""
        if bad is not None:
            self._put(bad, span.name("bad", "jsonl"))
        self._put(answers, span.name("part", self._format))

    def _put(self, file: Path, name: str) -> None:
        self._move(file, self._system, f"{self._path}/{name}")
        file.unlink(missing_ok=True)  # what was uploaded is still here

    def bad_files(self, spans: Sequence[Span]) -> list[str]:
        there = {(int(first), int(end)) for kind, first, end, _ in self._names() if kind == "bad"}
        return [f"{self._path}/{span.name('bad', 'jsonl')}" for span in spans if (span.first, span.end) in there]

    def count_bad(self, spans: Sequence[Span]) -> int:
        num = 0
        for path in self.bad_files(spans):
            with self._system.open(path, "rb") as file:
                num += sum(1 for _ in file)
        return num

    # the end

    def join(self, spans: Sequence[Span], out: str, columns: Columns) -> None:
        """Writes all parts into one file, which replaces what is there, and the bad rows into the file beside it."""
        if not (bad := self.bad_files(spans)):
            remove(bad_name(out))
        else:
            with self._replacing(bad_name(out)) as file:
                for path in bad:
                    self._append(path, file)
        paths = [f"{self._path}/{span.name('part', self._format)}" for span in spans]
        if self._format == "parquet":
            self._join_parquet(paths, out, columns)
            return
        with self._replacing(out) as file:
            head = csv_lines([list(columns)]) if self._format == "csv" else b""
            file.write(head)
            for path in paths:
                self._append(path, file, skip=len(head))

    def _append(self, path: str, file: Any, skip: int = 0) -> None:
        with self._system.open(path, "rb") as part:
            part.seek(skip)
            shutil.copyfileobj(part, file, 2**20)

    def _join_parquet(self, paths: Sequence[str], out: str, columns: Columns) -> None:
        file = self.new_file("parquet")
        try:
            join_parquet((partial(self._system.open, path, "rb") for path in paths), file, columns)
            self._move(file, *file_system(out))
        finally:
            file.unlink(missing_ok=True)

    @contextmanager
    def _replacing(self, out: str) -> Iterator[Any]:
        file = self.new_file("joined")
        try:
            with file.open("wb") as opened:
                yield opened
            self._move(file, *file_system(out))
        finally:
            file.unlink(missing_ok=True)

    def _move(self, file: Path, system: Any, path: str) -> None:
        """Into its place, in one step."""
        if not self.is_local:
            system.put_file(str(file), path)
            return
        with file.open("rb") as written:
            os.fsync(written.fileno())
        file.replace(path)
        sync_folder(Path(path).parent)

    def clean(self, spans: Sequence[Span] = ()) -> None:
        """Removes what no run needs: all but these parts, and what a kill has left."""
        kept = {span.name("part", self._format) for span in spans} | {span.name("bad", "jsonl") for span in spans}
        for path in self._paths():
            name = PurePath(path).name
            if name.startswith(_PREFIX) or (_NAME.fullmatch(name) and name not in kept):
                with suppress(FileNotFoundError):
                    self._system.rm_file(path)

    def remove(self) -> None:
        """Removes the folder with the parts."""
        self.clean()
        with suppress(OSError):
            self._system.rm_file(f"{self._path}/{RUN}")
        if self.is_local:
            (Path(self._path) / ".lock").unlink(missing_ok=True)
            with suppress(OSError):
                Path(self._path).rmdir()


def bad_name(out: str) -> str:
    return f"{out}.bad.jsonl"
