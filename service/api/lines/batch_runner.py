"""Runs batches in the background: checks their files, answers their lines at the lowest priority, writes the results.

One batch of each account is worked on at a time, and all that are share the lines in work. The answers are written in
the order of their lines. A kill loses the lines in work alone, which are answered again; SIGTERM finishes them first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import orjson

from service.api.accounts import ANYONE, Account
from service.api.auth import KeyStore
from service.api.lines.answers import LineReply, Lines
from service.api.lines.batch_input import InputFile, InputLimits
from service.api.problems import ErrorBody
from service.api.state import ServiceState
from service.domain import RANKS, RequestOptions
from service.errors import ServiceError, StorageFull, StorageUnavailable, Unauthorized, Unavailable
from service.logs import new_request_id
from service.settings import Server
from service.stores.batches import ANSWER, ERROR, Batch, BatchStore, Journal, Outcome

logger = logging.getLogger(__name__)

NUM_IN_WORK = 32
"""Lines of all batches that are being answered at a time."""
MAX_BATCHES = 8
"""That are worked on at a time, each of another account."""
HELD_BYTES = 16 * 2**20
"""Of the lines of a batch in work, and of the answers that wait for one before them: beyond it no line is started."""
SAVE_S = 1.0
"""Between two looks at the record: counts are written, and a request to cancel is read."""
GRACE_S = 10.0
"""For the lines in work when a batch is cancelled, has expired, or the service stops."""
RETRY_S = 30.0
"""After the disk was full or could not be read."""
SWEEP_S = 60.0


@dataclass(frozen=True, slots=True)
class Ending:
    """How a batch ends; an error is one of its own, not one of a line."""

    outcome: Outcome
    error: ServiceError | None = None


@dataclass(slots=True)
class _Work:
    """The lines of one batch that are in work, in their order."""

    batch: Batch
    journal: Journal
    file: InputFile
    account: Account
    waiting: deque[bytes] = field(default_factory=deque)
    """Lines that are read and not started."""
    tasks: deque[asyncio.Task[bytes]] = field(default_factory=deque)
    num_bytes: int = 0
    is_read: bool = False


class BatchRunner:
    """Works on the batches of a store. `find_account` is None for the name of a key that is no more."""

    def __init__(
        self,
        batches: BatchStore,
        lines: Lines,
        state: ServiceState,
        limits: Server,
        error_body: ErrorBody,
        find_account: Callable[[str], Account | None],
        *,
        poll_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._batches = batches
        self._lines = lines
        self._state = state
        most = max((each.max_values for each in lines.endpoints.values()), default=0)
        self._limits = InputLimits(batches.files.quotas.max_lines, limits.max_body_bytes, most)
        self._error_body = error_body
        self._find_account = find_account
        self.poll_s = poll_s
        self._clock = clock
        self._running: dict[str, asyncio.Task[None]] = {}
        self._paused_until: dict[str, float] = {}
        self._swept_at = float("-inf")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Works in the background; at the end the lines in work are finished, within GRACE_S."""
        polling = asyncio.create_task(self._poll(), name="batches")
        try:
            yield
        finally:
            self._state.stopping.set()
            await polling  # which may start a batch until then
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _poll(self) -> None:
        while not self._state.stopping.is_set():
            wait_s = self.poll_s
            try:
                await self._start()
                await self._sweep()
            except Exception as error:  # noqa: BLE001 - the loop must go on, whatever one record holds
                reason = error.detail if isinstance(error, ServiceError) else type(error).__name__
                logger.warning("batches: cannot be read", extra={"reason": reason})
                wait_s = RETRY_S
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._state.stopping.wait()

    async def _start(self) -> None:
        """Starts to work on the oldest batch of each account."""
        for batch in await asyncio.to_thread(self._batches.unfinished):
            if len(self._running) >= MAX_BATCHES:
                return
            if batch.owner in self._running or self._clock() < self._paused_until.get(batch.id, 0.0):
                continue
            journal = await asyncio.to_thread(self._batches.claim, batch)
            if journal is not None:
                self._paused_until.pop(batch.id, None)
                task = asyncio.create_task(self._run(batch, journal), name=batch.id)
                self._running[batch.owner] = task
                self._state.metrics.batch_jobs_running.inc()

    async def _sweep(self) -> None:
        if self._clock() - self._swept_at >= SWEEP_S:
            self._swept_at = self._clock()
            await asyncio.to_thread(self._batches.files.sweep)
            await asyncio.to_thread(self._batches.sweep)
            self._state.metrics.stored_file_bytes.set(await asyncio.to_thread(self._batches.files.num_bytes))

    async def _run(self, batch: Batch, journal: Journal) -> None:
        try:
            await self._work(await asyncio.to_thread(self._batches.get, batch.owner, batch.id), journal)
        except (StorageFull, StorageUnavailable, OSError) as error:
            reason = error.detail if isinstance(error, ServiceError) else error.strerror
            logger.warning("batch: goes on later", extra={"batch": batch.id, "reason": reason})
            self._paused_until[batch.id] = self._clock() + RETRY_S
        except Exception:  # whatever is wrong with a batch, the others go on
            logger.exception("batch: goes on later", extra={"batch": batch.id})
            self._paused_until[batch.id] = self._clock() + RETRY_S
        finally:
            del self._running[batch.owner]
            self._state.metrics.batch_jobs_running.dec()
            await asyncio.to_thread(journal.close)

    async def _work(self, batch: Batch, journal: Journal) -> None:
        if batch.status == "validating":
            batch = await self._validate(batch)
        if batch.outcome is None and not batch.has_ended:
            ending = await self._answer_lines(batch, journal)
            if ending is None:  # the service stops
                return
            finalize = partial(self._finalized, journal, ending)
            batch = await asyncio.to_thread(self._batches.update, batch, finalize)
        if not batch.has_ended:
            batch = await asyncio.to_thread(self._batches.finish, batch, journal)
        else:
            await asyncio.to_thread(self._batches.forget, batch)
        self._state.metrics.batch_ended(batch.status)
        extra = {"batch": batch.id, "key": batch.owner, "status": batch.status, "lines": batch.num_lines}
        logger.info("batch: ended", extra={**extra, "failed": batch.num_failed})

    async def _validate(self, batch: Batch) -> Batch:
        """The batch after its input file was read once: in progress, failed, or cancelled meanwhile."""

        def validate() -> Batch:
            now = self._batches.files.clock
            try:
                with self._open(batch) as file:
                    checked = file.check(batch.endpoint)
            except ServiceError as error:
                errors = [_error(error)]
                return self._batches.update(batch, lambda current: current.reached("failed", now(), errors=errors))

            def change(current: Batch) -> Batch:
                if current.status != "validating":
                    return current
                if checked.errors:
                    return current.reached("failed", now(), errors=checked.errors)
                found = {"num_lines": checked.num_lines, "model": checked.model}
                return current.reached("in_progress", now(), **found)

            return self._batches.update(batch, change)

        return await self._state.pipeline.threads.run(_options(batch.owner), validate)

    def _open(self, batch: Batch) -> InputFile:
        """Raises StoredFileNotFound."""
        files = self._batches.files
        return InputFile(files.path(files.get(batch.owner, batch.input_file_id)), self._limits)

    def _finalized(self, journal: Journal, ending: Ending, current: Batch) -> Batch:
        changes: dict[str, Any] = {"num_completed": journal.num_completed, "num_failed": journal.num_failed}
        if ending.error is not None:
            changes["errors"] = [_error(ending.error)]
        if current.status == "cancelling":
            return replace(current, outcome="cancelled", **changes)
        return current.reached("finalizing", self._batches.files.clock(), outcome=ending.outcome, **changes)

    # lines

    async def _answer_lines(self, batch: Batch, journal: Journal) -> Ending | None:
        """Answers the lines that the journal has not; None if the service stops before the last one."""
        account = self._find_account(batch.owner)
        try:
            if account is None:
                raise Unauthorized("this API key was revoked")
            file = await asyncio.to_thread(self._open, batch)
        except (StorageFull, StorageUnavailable):
            raise
        except ServiceError as error:
            return Ending("failed", error)
        work = _Work(batch, journal, file, account)
        try:
            await asyncio.to_thread(file.skip, journal.num_lines)
            ending = await self._answer_rest(work)
            if ending is not None and ending.outcome == "expired":
                await asyncio.to_thread(self._expire_rest, work)
            return ending
        finally:
            for task in work.tasks:
                task.cancel()
            await asyncio.gather(*work.tasks, return_exceptions=True)
            await asyncio.to_thread(file.close)

    async def _answer_rest(self, work: _Work) -> Ending | None:
        looked_at = float("-inf")
        while True:
            if self._state.stopping.is_set():
                await self._finish_started(work)
                return None
            if self._clock() - looked_at >= SAVE_S:
                looked_at = self._clock()
                ending = await asyncio.to_thread(self._look, work)
                if ending is not None:
                    await self._finish_started(work)
                    return ending
            await self._fill(work)
            if not work.tasks:
                return Ending("completed")
            await asyncio.wait([work.tasks[0]], timeout=SAVE_S)
            try:
                await self._write_done(work)
            except Unavailable:
                return None
            except ServiceError as error:  # the key was revoked
                return Ending("failed", error)

    async def _fill(self, work: _Work) -> None:
        """Starts lines up to this batch's share of those in work."""
        share = max(1, NUM_IN_WORK // len(self._running))
        while len(work.tasks) < share and (not work.tasks or work.num_bytes < HELD_BYTES):
            if not work.waiting and not work.is_read:
                taken = await asyncio.to_thread(work.file.take, NUM_IN_WORK, HELD_BYTES // 4)
                work.waiting.extend(taken)
                work.is_read = not taken
            if not work.waiting:
                return
            line = work.waiting.popleft()
            work.num_bytes += len(line)
            work.tasks.append(asyncio.create_task(self._answer(work, line)))

    async def _answer(self, work: _Work, line: bytes) -> bytes:
        """The line of the journal."""
        num_bytes = len(line)
        reply = await self._lines.answer(line, work.account, new_request_id())
        written = self._written(reply)
        work.num_bytes += len(written) - num_bytes
        return written

    def _written(self, reply: LineReply) -> bytes:
        body = orjson.Fragment(reply.body)
        if reply.error is not None:
            body = orjson.Fragment(orjson.dumps(self._error_body(reply.error, reply.request_id)))
        response = {"status_code": reply.status, "request_id": reply.request_id, "body": body}
        return _line(ANSWER if reply.status < 400 else ERROR, reply.custom_id, reply.request_id, response, None)

    async def _write_done(self, work: _Work) -> None:
        """Writes the answers that no other line is before. Raises what answering the first line raised."""
        written = []
        while work.tasks and work.tasks[0].done():
            if work.tasks[0].exception() is not None:
                break
            written.append(work.tasks.popleft().result())
        if written:
            journal, before = work.journal, work.journal.num_completed
            await asyncio.to_thread(journal.append, written)
            num_completed = journal.num_completed - before
            self._state.metrics.batch_lines_done(num_completed, len(written) - num_completed)
            work.num_bytes -= sum(map(len, written))
        if work.tasks and work.tasks[0].done():
            work.tasks[0].result()

    async def _finish_started(self, work: _Work) -> None:
        """Writes the answers of the lines in work, as far as they are there within GRACE_S."""
        if work.tasks:
            await asyncio.wait(work.tasks, timeout=GRACE_S)
        with suppress(ServiceError):
            await self._write_done(work)

    def _look(self, work: _Work) -> Ending | None:
        """Writes the counts, and says why the batch ends before its last line."""
        journal, files = work.journal, self._batches.files

        def change(current: Batch) -> Batch:
            return replace(current, num_completed=journal.num_completed, num_failed=journal.num_failed)

        current = self._batches.update(work.batch, change)
        if current.status == "cancelling":
            return Ending("cancelled")
        if files.clock() >= current.expires_at:
            return Ending("expired")
        try:
            files.get(current.owner, current.input_file_id)
            files.check_room(current.owner, journal.num_bytes)
        except (StorageFull, StorageUnavailable):
            raise
        except ServiceError as error:
            return Ending("failed", error)
        return None

    def _expire_rest(self, work: _Work) -> None:
        error = {"code": "batch_expired", "message": "The batch expired before this line was answered."}
        work.file.rewind()
        work.file.skip(work.journal.num_lines)
        while lines := work.file.take(NUM_IN_WORK, HELD_BYTES // 4):
            ids = [orjson.loads(line)["custom_id"] for line in lines]
            work.journal.append([_line(ERROR, id, new_request_id(), None, error) for id in ids])


def accounts_of(key_store: KeyStore | None) -> Callable[[str], Account | None]:
    """The account of a name. Without keys there is one, which has none."""
    if key_store is None:
        return {ANYONE.name: ANYONE}.get
    return key_store.named


def _line(sign: bytes, custom_id: Any, request_id: str, response: Any, error: Any) -> bytes:
    content = {"id": f"batch_req_{request_id}", "custom_id": custom_id, "response": response, "error": error}
    return sign + orjson.dumps(content) + b"\n"


def _error(error: ServiceError) -> dict[str, Any]:
    return {"code": error.code, "message": error.detail, "param": None, "line": None}


def _options(owner: str) -> RequestOptions:
    return RequestOptions(priority=RANKS["bulk"], account=owner)
