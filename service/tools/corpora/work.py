"""Computes the parts of a job that are not done: each client takes one after the other, and writes it.

The parts are as large as what a client answers in some seconds, so that little is computed twice after a kill. Each
client has two in work, so that it is busy while one of them ends. A part whose client fails goes on with another one,
from its first row without an answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from typing import Final

from service.errors import StartupError
from service.tools.corpora.bulk_client import BulkClient, Interrupted
from service.tools.corpora.job import Counts, Job, Part, cut

logger = logging.getLogger(__name__)

LANES: Final = 2
"""Parts of a client in work."""
FIRST_ROWS: Final = 64
MAX_ROWS: Final = 10_000
TARGET_S: Final = 20.0
"""What a part takes, unless its rows or bytes are limited."""
MAX_GROWTH: Final = 4
PATIENCE_S: Final = 600.0
"""Without an answer of any client, until the run ends."""
MAX_WAIT_S: Final = 30.0
MIN_REFUSED: Final = 32
"""Rows without an answer among them, after which the run ends: what is wrong is wrong with all."""

OnPart = Callable[[Part], object]


class Pace:
    """How many rows a part has."""

    def __init__(self) -> None:
        self.rows = FIRST_ROWS

    def update(self, num_rows: int, seconds: float) -> None:
        wanted = num_rows * TARGET_S / max(seconds, 1e-3)
        self.rows = round(min(max(wanted, FIRST_ROWS), self.rows * MAX_GROWTH, MAX_ROWS))


class _Feed:
    """The parts of a job: those that were given back, then those that are left of the corpus."""

    def __init__(self, job: Job, pace: Pace) -> None:
        self._job = job
        self._cut = cut(job.opened, job.parts.done(), lambda: pace.rows)
        self._given_back: deque[Part] = deque()
        self._num_in_work = 0
        self._change = asyncio.Condition()
        self._is_read = False

    async def take(self) -> Part | None:
        """The next part; None once all are done."""
        async with self._change:
            while not self._given_back and self._is_read:
                if not self._num_in_work:
                    return None
                await self._change.wait()
            part = self._given_back.popleft() if self._given_back else await asyncio.to_thread(self._read)
            if part is None:
                self._is_read = True
                self._change.notify_all()
            else:
                self._num_in_work += 1
        return part if part is not None else await self.take()

    def _read(self) -> Part | None:
        found = next(self._cut, None)
        return None if found is None else Part(self._job, *found)

    async def put_back(self, part: Part) -> None:
        async with self._change:
            self._num_in_work -= 1
            self._given_back.append(part)
            self._change.notify_all()

    async def rest(self, seconds: float) -> None:
        """Waits, but not longer than until all parts are done."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._change:
                await self._change.wait_for(lambda: self._is_read and not self._given_back and not self._num_in_work)

    async def finished(self) -> None:
        async with self._change:
            self._num_in_work -= 1
            self._change.notify_all()


class Work:
    """Computes a job with clients; `on_part` is called with each part that is done."""

    def __init__(self, job: Job, on_part: OnPart = lambda part: None) -> None:
        self.counts = Counts()
        self.seconds = 0.0
        self._pace = Pace()
        self._feed = _Feed(job, self._pace)
        self._on_part = on_part
        self._heard_at = 0.0

    async def run(self, clients: Sequence[BulkClient]) -> None:
        """Raises StartupError: no client answers, or none ever will."""
        started = self._heard_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.TaskGroup() as group:
                for client in clients:
                    for _ in range(LANES):
                        group.create_task(self._lane(client))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        self.seconds = asyncio.get_running_loop().time() - started

    def _heard(self) -> None:
        self._heard_at = asyncio.get_running_loop().time()

    async def _lane(self, client: BulkClient) -> None:
        clock = asyncio.get_running_loop().time
        num_failures = 0
        while part := await self._feed.take():
            started, before = clock(), part.num_done
            try:
                await answer(part, client, self.counts, self._heard)
            except Interrupted as error:
                num_failures = 1 if part.num_done > before else num_failures + 1
                await self._feed.put_back(part)
                if clock() - self._heard_at > PATIENCE_S:
                    raise StartupError(f"{error}; the same command goes on from here") from None
                logger.warning("%s; the rows go on", error)
                await self._feed.rest(min(MAX_WAIT_S, error.wait_s * 2 ** (num_failures - 1)))
                continue
            except BaseException:
                part.discard()
                raise
            num_failures = 0
            await asyncio.to_thread(part.commit)
            self.counts.add(part.counts)
            self._pace.update(part.num_done - before, clock() - started)
            self._on_part(part)
            await self._feed.finished()


async def answer(part: Part, client: BulkClient, counts: Counts, on_reply: Callable[[], object] = lambda: None) -> None:
    """Answers the rows that are left of a part. `counts` are those of the parts before it.

    Raises:
        Interrupted: some are still left.
        StartupError: all that were sent so far were refused, or all others will be.
    """
    while lines := part.left:
        num_replies = 0
        async with aclosing(client.post(lines)) as replies:
            async for reply in replies:
                part.take(reply)
                num_replies += 1
                on_reply()
        if num_replies < len(lines):
            raise Interrupted(f"{client.name}: the replies have ended early")
    if not counts.answered + part.counts.answered and part.counts.failed >= MIN_REFUSED and part.last_error:
        raise StartupError(f"none of the first {part.counts.failed} rows was answered: {part.last_error}")
