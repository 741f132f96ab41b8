"""A job: a corpus, what is asked of each row, and the files of its answers. It is a value that machines can exchange.

Its rows are cut into parts, and a part is computed by whatever answers lines: `Part` sends its rows, and writes each
answer, or the error of a bad row, in the order of the rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import orjson

from service.errors import DatasetError
from service.tools.corpora.asking import Ask
from service.tools.corpora.parts import Parts, Span
from service.tools.corpora.source import (
    Parquet,
    Place,
    Record,
    Row,
    Source,
    exists,
    format_of,
    identity_of,
    open_source,
    raw_of,
)
from service.tools.corpora.writers import ERROR, ROW, JsonLinesWriter, kept_name, open_writer, result_columns
from service.tools.data.files import RecordError

MAX_PART_BYTES = 8 * 2**20
"""Of the rows of a part, as they are in the file."""
LINE_ROWS = 16
LINE_BYTES = 16_384
"""Of the rows of a line, as they are in the file."""
FLUSH_ROWS = 512
"""Answers that are kept in memory; a row group of a parquet file."""


@dataclass(frozen=True)
class Job:
    """`out` is a file, or a folder for the parts themselves, whose format is `format`."""

    source: str
    ask: Ask
    out: str
    format: str
    keep: tuple[str, ...] = ()
    encoding: str = "utf-8"
    model: str | None = None
    """As it is named where the rows are computed; `ask` has it for servers."""

    @property
    def is_joined(self) -> bool:
        return format_of(self.out) is not None

    @property
    def folder(self) -> str:
        return f"{self.out}.parts" if self.is_joined else self.out.rstrip("/")

    def identity(self) -> dict[str, Any]:
        """What another run must have in common to go on with the same parts."""
        kept = {name: value for name, value in asdict(self).items() if name not in ("source", "out")}
        kept["ask"]["body"].pop("model", None)
        found: dict[str, Any] = orjson.loads(orjson.dumps({"source": identity_of(self.source), **kept}))
        return found

    @cached_property
    def opened(self) -> Source:
        """Raises DatasetError."""
        return open_source(self.source, self.encoding)

    @cached_property
    def parts(self) -> Parts:
        return Parts(self.folder, self.format)

    @cached_property
    def names(self) -> dict[str, str]:
        """The name in the output of each column that is kept."""
        results = result_columns(self.ask.task)
        return {name: kept_name(name, results) for name in self.keep}

    @cached_property
    def columns(self) -> dict[str, Any]:
        given = {}
        if isinstance(self.opened, Parquet):
            given = {field.name: field.type for field in self.opened.schema}
        kept = {named: given.get(name, "json") for name, named in self.names.items()}
        return {ROW: "int64", **kept, **result_columns(self.ask.task), ERROR: "string"}

    def begin(self, *, overwrite: bool) -> bool:
        """Whether this run goes on with parts that are there.

        Raises:
            DatasetError: the output is finished, or belongs to another run, and is not to be overwritten.
        """
        identity, found = self.identity(), self.parts.read_run()
        if overwrite:
            found = None
        elif found is None and (exists(self.out) if self.is_joined else self.parts.done()):
            raise DatasetError(f"{self.out}: exists; write it again with --overwrite")
        elif found is not None and found["job"] != identity:
            raise DatasetError(f"{self.out}: was begun with another input or other flags; start again with --overwrite")
        elif found is not None and found["is_finished"]:
            if self.is_joined:
                self.parts.remove()
            raise DatasetError(f"{self.out}: is finished; write it again with --overwrite")
        if found is None:
            self.parts.clean()
            self.parts.write_run({"job": identity, "is_finished": False})
        else:
            self.parts.clean(self.parts.done())
        return found is not None

    def finish(self) -> tuple[int, int]:
        """Joins the parts, if the output is a file. Returns the numbers of rows, and of bad ones."""
        spans = self.parts.done()
        holes = [after.first for before, after in pairwise([Span(0, 0), *spans]) if before.end != after.first]
        assert not holes, f"rows {holes} are missing"
        num_rows, num_bad = (spans[-1].end if spans else 0), self.parts.count_bad(spans)
        if self.is_joined:
            self.parts.join(spans, self.out, self.columns)
        self.parts.clean(spans)
        self.parts.write_run({"job": self.identity(), "is_finished": True, "rows": num_rows, "failed": num_bad})
        if self.is_joined:
            self.parts.remove()
        return num_rows, num_bad


def cut(source: Source, done: Sequence[Span], max_rows: Callable[[], int]) -> Iterator[tuple[Place, list[Record]]]:
    """The rows that are not done in parts of at most so many rows, each with the place before it."""
    spans = deque(done)
    before = start = source.near(spans[0].end if spans and not spans[0].first else 0)
    records: list[Record] = []
    size = 0
    for record in source.records(before):
        while spans and spans[0].end < record.end.row:
            spans.popleft()
        is_done = bool(spans) and spans[0].first < record.end.row
        if records and (is_done or len(records) >= max_rows() or size >= MAX_PART_BYTES):
            yield start, records
            records, size = [], 0
        if not is_done:
            start = start if records else before
            records.append(record)
            size += record.num_bytes
        before = record.end
    if records:
        yield start, records


@dataclass(slots=True)
class Counts:
    answered: int = 0
    failed: int = 0
    tokens: int = 0

    def add(self, other: Counts) -> None:
        self.answered += other.answered
        self.failed += other.failed
        self.tokens += other.tokens


class Part:
    """Rows on their way to a part: call `take` with each reply to the lines that are `left`, then `commit`.

    A line has several rows, which costs less than a line for each. Where such a line is refused, each of its rows has
    one of its own in what is left then. What interrupts the replies loses no answer.
    """

    def __init__(self, job: Job, start: Place, records: Sequence[Record]) -> None:
        self.span = Span(start.row, records[-1].end.row)
        self.counts = Counts()
        self.last_error = ""
        """Of the rows that were sent."""
        position = job.opened.position
        self.size = position(records[-1].end) - position(start)
        """In the unit of the source's size."""
        self._job = job
        self._records = records
        self._rows = [job.opened.row(record) for record in records]
        self._requests = [self._request(row) for row in self._rows]
        self._groups = deque(self._make_groups())
        self._refused: deque[list[int]] = deque()
        self._outcomes: dict[int, Mapping[str, Any]] = {}
        """The results or the errors of rows that wait for one before them."""
        self._next = 0
        self._answers: list[dict[str, Any]] = []
        self._file = job.parts.new_file(job.format)
        self._bad_file = job.parts.new_file("jsonl")
        self._writer = open_writer(self._file, job.format, job.columns)
        self._bad: JsonLinesWriter | None = None
        self._add_ready()

    def _request(self, row: Row) -> tuple[Any, dict[str, Any]] | RecordError:
        try:
            return self._job.ask.request(row)
        except RecordError as error:
            return error

    def _make_groups(self) -> Iterator[list[int]]:
        """The indices of rows that a line has together."""
        group: list[int] = []
        fields: dict[str, Any] = {}
        size = 0
        for index, (record, request) in enumerate(zip(self._records, self._requests, strict=True)):
            if isinstance(request, RecordError):
                continue
            is_full = len(group) >= LINE_ROWS or size + record.num_bytes > LINE_BYTES
            if group and (is_full or request[1] != fields):
                yield group
                group, size = [], 0
            group.append(index)
            size, fields = size + record.num_bytes, request[1]
        if group:
            yield group

    @property
    def left(self) -> list[bytes]:
        return [self._line(group) for group in self._groups]

    def _line(self, group: Sequence[int]) -> bytes:
        requests = [request for index in group if not isinstance(request := self._requests[index], RecordError)]
        return self._job.ask.line([one for one, _ in requests], requests[0][1])

    @property
    def num_done(self) -> int:
        return self._next

    def take(self, reply: Mapping[str, Any]) -> None:
        """The reply to the first line that is left."""
        group = self._groups.popleft()
        if "error" not in reply:
            self._outcomes.update(zip(group, reply["response"]["results"], strict=True))
        elif len(group) > 1:
            self._refused.extend([index] for index in group)
        else:
            self.last_error = reply["error"]["detail"]
            self._outcomes[group[0]] = {ERROR: reply["error"]}
        if not self._groups:
            self._groups, self._refused = self._refused, deque()
        self._add_ready()

    def _add_ready(self) -> None:
        while self._next < len(self._rows):
            request = self._requests[self._next]
            if isinstance(request, RecordError):
                self._add_bad("invalid_row", str(request))
            elif (outcome := self._outcomes.pop(self._next, None)) is None:
                return
            elif ERROR in outcome:
                self._add_bad(outcome[ERROR]["code"], outcome[ERROR]["detail"])
            else:
                self.counts.answered += 1
                self.counts.tokens += outcome["tokens"]
                self._add(outcome)

    def _add_bad(self, code: str, detail: str) -> None:
        row, record = self._rows[self._next], self._records[self._next]
        if self._bad is None:
            self._bad = JsonLinesWriter(self._bad_file)
        raw = raw_of(record, self._job.encoding)
        self._bad.write([{ROW: row.number, ERROR: {"code": code, "detail": detail}, "input": raw}])
        self.counts.failed += 1
        self._add({ERROR: f"{code}: {detail}"})

    def _add(self, fields: Mapping[str, Any]) -> None:
        row = self._rows[self._next]
        kept = {named: row.values.get(name) for name, named in self._job.names.items()}
        self._answers.append({ROW: row.number, **kept, **fields})
        self._next += 1
        if len(self._answers) >= FLUSH_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._writer.write(self._answers)
        self._answers = []

    def commit(self) -> None:
        """Adds the part to the output."""
        assert self._next == len(self._rows), "rows are left"
        if self._answers:
            self._flush()
        self._writer.close()
        if self._bad is not None:
            self._bad.close()
        self._job.parts.put(self.span, self._file, None if self._bad is None else self._bad_file)

    def discard(self) -> None:
        self._writer.close()
        if self._bad is not None:
            self._bad.close()
        self._file.unlink(missing_ok=True)
        self._bad_file.unlink(missing_ok=True)
