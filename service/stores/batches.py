"""Batch jobs: their records, and the journal of the answers that each has so far.

A journal has one line for each answered line of the input file, in its order: `+` or `-` for an answer or an error, and
the line of the output or error file. So the number of its lines says where a job goes on after a kill, and at its end
the journal is split into the two files.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from service.errors import BatchHasEnded, BatchNotFound, QuotaExceeded
from service.stores.disk import open_private, write_all
from service.stores.files import FileStore
from service.stores.records import RECORD

Status = Literal["validating", "in_progress", "finalizing", "cancelling", "completed", "failed", "expired", "cancelled"]
Outcome = Literal["completed", "failed", "expired", "cancelled"]
OUTCOMES: tuple[Outcome, ...] = ("completed", "failed", "expired", "cancelled")

ID = "batch_"
JOURNAL = ".answers"
WINDOW_S = 24 * 3600
ANSWER, ERROR = b"+", b"-"
READ_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Batch:
    """Times are seconds since the epoch; `times` has that at which each status was reached.

    `outcome` is how it ends, from `finalizing` on. An error has `code`, `message`, `param` and `line`.
    """

    id: str
    owner: str
    endpoint: str
    input_file_id: str
    created_at: int
    expires_at: int
    metadata: dict[str, str] | None = None
    output_expiry_s: int | None = None
    status: Status = "validating"
    outcome: Outcome | None = None
    times: dict[str, int] = field(default_factory=dict)
    model: str | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    num_lines: int = 0
    num_completed: int = 0
    num_failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None

    @property
    def has_ended(self) -> bool:
        return self.status in OUTCOMES

    def reached(self, status: Status, now: float, **changes: Any) -> Self:
        return replace(self, status=status, times={**self.times, status: int(now)}, **changes)


class Journal:
    """The answers of one batch, of which this process alone works. `close` gives it up."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.num_completed = self.num_failed = self.num_bytes = 0
        self._count()

    @property
    def num_lines(self) -> int:
        return self.num_completed + self.num_failed

    def _count(self) -> None:
        """Counts the complete lines, and cuts off one that an interrupted write has left."""
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._add(line)
        os.ftruncate(self._descriptor, self.num_bytes)

    def _add(self, line: bytes) -> None:
        self.num_completed += line.startswith(ANSWER)
        self.num_failed += line.startswith(ERROR)
        self.num_bytes += len(line)

    def append(self, lines: Sequence[bytes]) -> None:
        """Lines with their sign and their end; they are on the disk when it returns. After an OSError, close it."""
        write_all(self._descriptor, b"".join(lines))
        os.fdatasync(self._descriptor)
        for line in lines:
            self._add(line)

    def split(self, answers: Callable[[bytes], None], errors: Callable[[bytes], None]) -> None:
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            for line in file:
                write = answers if line.startswith(ANSWER) else errors
                write(line[1:])

    def close(self) -> None:
        os.close(self._descriptor)


class BatchStore:
    """The batches in the folder of the `files`. Every method reads or writes the disk."""

    def __init__(self, files: FileStore) -> None:
        self.files = files
        self._records = files.records

    def create(
        self,
        owner: str,
        *,
        endpoint: str,
        input_file_id: str,
        metadata: dict[str, str] | None = None,
        output_expiry_s: int | None = None,
    ) -> Batch:
        """Raises StoredFileNotFound, QuotaExceeded."""
        self.files.get(owner, input_file_id)
        num_batches, most = len(self._records.ids(owner, RECORD, ID)), self.files.quotas.max_files
        if num_batches >= most:
            raise QuotaExceeded(f"this key has {num_batches} batches, at most {most} are kept until they expire")
        now = int(self.files.clock())
        id = f"{ID}{secrets.token_hex(12)}"
        batch = Batch(id, owner, endpoint, input_file_id, now, now + WINDOW_S, metadata, output_expiry_s)
        with self._records.storing(), open_private(self._journal(batch), os.O_WRONLY | os.O_CREAT):
            pass  # before its record: a batch without a journal has ended
        self._write(batch)
        return batch

    def get(self, owner: str, id: str) -> Batch:
        """Raises BatchNotFound."""
        found = self._find(owner, id)
        if found is None:
            raise BatchNotFound(f"there is no batch {id[:80]}; GET /v1/batches lists those of this key")
        return found

    def all(self, owner: str) -> list[Batch]:
        """The batches of an owner, the newest first."""
        found = (self._find(owner, id) for id in self._records.ids(owner, RECORD, ID))
        kept = [each for each in found if each is not None]
        return sorted(kept, key=lambda batch: (batch.created_at, batch.id), reverse=True)

    def update(self, batch: Batch, change: Callable[[Batch], Batch]) -> Batch:
        """Writes what `change` makes of the record as it is now. Raises BatchNotFound."""
        with self._records.locked():
            changed = change(current := self.get(batch.owner, batch.id))
            if changed != current:
                self._write(changed)
        return changed

    def cancel(self, owner: str, id: str) -> Batch:
        """Raises BatchNotFound, BatchHasEnded."""

        def change(batch: Batch) -> Batch:
            if batch.status == "cancelling":
                return batch
            if batch.has_ended or batch.status == "finalizing":
                raise BatchHasEnded(f"the batch is {batch.status}, and cannot be cancelled")
            return batch.reached("cancelling", self.files.clock())

        return self.update(self.get(owner, id), change)

    # running

    def unfinished(self) -> list[Batch]:
        """The batches of all owners that have not ended, the oldest first."""
        records = self._records
        found = [self._find(owner, id) for owner in records.owners() for id in records.ids(owner, JOURNAL, ID)]
        return sorted((each for each in found if each is not None), key=lambda batch: (batch.created_at, batch.id))

    def claim(self, batch: Batch) -> Journal | None:
        """The journal of a batch; None if another process works on the batch, or it has ended."""
        with self._records.storing():
            try:
                descriptor = os.open(self._journal(batch), os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found = self._find(batch.owner, batch.id)
                if found is not None and not found.has_ended:
                    return Journal(descriptor)
                self._journal(batch).unlink(missing_ok=True)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
                    os.close(descriptor)
                    raise
            os.close(descriptor)
            return None

    def finish(self, batch: Batch, journal: Journal) -> Batch:
        """Makes the files of a finalizing batch of its journal, and ends it with its outcome. May be called again."""
        assert batch.outcome is not None, "a finalizing batch has one"
        stem = batch.id.removeprefix(ID)
        ids = {"output": f"file-{stem}-output", "error": f"file-{stem}-errors"}
        with (
            self.files.output(batch.owner, ids["output"]) as output,
            self.files.output(batch.owner, ids["error"]) as errors,
        ):
            journal.split(output.write, errors.write)
            made: dict[str, str | None] = {"output": None, "error": None}
            for kind, upload in (("output", output), ("error", errors)):
                if upload.num_bytes:
                    name = f"{batch.id}_{kind}.jsonl"
                    made[kind] = upload.keep(name, "batch_output", batch.output_expiry_s).id
        outcome, now = batch.outcome, self.files.clock()
        files = {"output_file_id": made["output"], "error_file_id": made["error"]}
        ended = self.update(batch, lambda current: current.reached(outcome, now, **files))
        self.forget(ended)
        return ended

    def forget(self, batch: Batch) -> None:
        """Removes the journal of a batch that has ended."""
        with self._records.storing():
            self._journal(batch).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Removes batches that ended as long ago as a file is kept."""
        oldest = self.files.clock() - self.files.quotas.expiry_s
        for owner in self._records.owners():
            for batch in self.all(owner):
                if batch.has_ended and batch.times[batch.status] < oldest:
                    self._records.remove(owner, batch.id, JOURNAL)

    def _find(self, owner: str, id: str) -> Batch | None:
        record = self._records.read(owner, id) if id.startswith(ID) else None
        return None if record is None else Batch(**record)

    def _write(self, batch: Batch) -> None:
        self._records.write_record(batch.owner, batch.id, asdict(batch))

    def _journal(self, batch: Batch) -> Path:
        return self._records.file(batch.owner, batch.id, JOURNAL)
