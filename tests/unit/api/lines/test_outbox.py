"""Replies on their way to a client that reads, reads slowly, or sends all first."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from service.api.lines.outbox import CHUNK_BYTES, IN_MEMORY_BYTES, PATIENCE_S, Outbox, Spool
from service.errors import RepliesUnread
from tests.fakes import FakeClock
from tests.support.servers import until

FULL = bytes(IN_MEMORY_BYTES + 1)


@dataclass
class Client:
    """Reads while its gate is open."""

    reads: asyncio.Event = field(default_factory=asyncio.Event)
    received: bytes = b""

    async def send(self, data: bytes) -> None:
        await self.reads.wait()
        self.received += data


@dataclass
class Sending:
    outbox: Outbox
    client: Client
    clock: FakeClock
    spool: Spool
    is_receiving: bool = True


@asynccontextmanager
async def sending(max_bytes: int = 2**22) -> AsyncIterator[Sending]:
    client, clock, spool = Client(), FakeClock(), Spool(max_bytes)
    found: Sending
    outbox = Outbox(client.send, spool, lambda: found.is_receiving, clock)
    found = Sending(outbox, client, clock, spool)
    yield found
    await outbox.close()


async def stall(found: Sending) -> None:
    """The client has read nothing for so long that it is taken for one that sends first."""
    await found.outbox.put(b"first")
    await asyncio.sleep(0)
    found.clock.now += PATIENCE_S


async def test_replies_are_sent_in_their_order() -> None:
    async with sending() as found:
        found.client.reads.set()
        for number in range(100):
            await found.outbox.put(b"%d," % number)
        await found.outbox.finish(b"end")
        assert found.client.received == b"".join(b"%d," % number for number in range(100)) + b"end"


async def test_replies_wait_for_a_client_that_reads_slowly() -> None:
    async with sending() as found:
        await found.outbox.put(b"first")
        putting = asyncio.create_task(found.outbox.put(FULL))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not putting.done()
        found.client.reads.set()
        await putting
        assert found.spool.size == 0


async def test_replies_go_to_the_file_once_the_client_has_read_nothing_for_long() -> None:
    async with sending() as found:
        await stall(found)
        await found.outbox.put(FULL)
        assert found.spool.size == len(FULL)
        found.client.reads.set()
        await found.outbox.finish(b"end")
        assert found.client.received == b"first" + FULL + b"end"


async def test_replies_wait_again_once_the_client_reads() -> None:
    async with sending() as found:
        await stall(found)
        await found.outbox.put(FULL)
        found.client.reads.set()
        await until(lambda: bool(found.client.received), 10)
        await found.outbox.put(FULL)
        assert found.spool.size == 0
        assert len(found.client.received) >= CHUNK_BYTES


async def test_replies_never_go_to_the_file_once_the_request_is_complete() -> None:
    async with sending() as found:
        await stall(found)
        found.is_receiving = False
        putting = asyncio.create_task(found.outbox.put(FULL))
        await asyncio.sleep(0)
        assert not putting.done()
        found.client.reads.set()
        await putting


async def test_without_a_file_replies_wait_however_long() -> None:
    async with sending(max_bytes=0) as found:
        await stall(found)
        putting = asyncio.create_task(found.outbox.put(FULL))
        await asyncio.sleep(0)
        assert not putting.done()
        found.client.reads.set()
        await putting


async def test_a_full_file_ends_the_request_and_loses_no_reply() -> None:
    async with sending(max_bytes=len(FULL) + 10) as found:
        await stall(found)
        await found.outbox.put(FULL)
        with pytest.raises(RepliesUnread, match="does not read its replies"):
            await found.outbox.put(FULL)
        found.client.reads.set()
        await found.outbox.finish(b"end")
        assert found.client.received == b"first" + FULL + FULL + b"end"


async def test_a_failure_to_send_ends_the_request() -> None:
    async def fail(data: bytes) -> None:
        raise ConnectionResetError

    outbox = Outbox(fail, Spool(0), lambda: True)
    with pytest.raises(ConnectionResetError):
        await outbox.put(FULL)
    await outbox.close()


def test_a_spool_is_first_in_first_out_in_a_ring() -> None:
    chosen, spool, expected = random.Random(1), Spool(1000), b""
    for _ in range(2000):
        data = chosen.randbytes(chosen.randrange(400))
        has_room = len(expected) + len(data) <= 1000
        assert spool.put(data) is has_room
        expected += data if has_room else b""
        taken = spool.take(chosen.randrange(1, 400))
        assert expected.startswith(taken)
        expected = expected[len(taken) :]
        assert spool.size == len(expected)
    spool.close()


def test_the_file_is_for_this_user_only_and_has_no_name() -> None:
    spool = Spool(100)
    spool.put(b"text")
    status = os.fstat(spool._file.fileno())  # type: ignore[union-attr]
    assert (stat.S_IMODE(status.st_mode), status.st_nlink) == (0o600, 0)
    spool.close()


def test_a_full_disk_is_a_full_spool(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "pwrite", fail)
    spool = Spool(100)
    assert spool.put(b"text") is False
    spool.close()


def test_a_closed_spool_takes_nothing() -> None:
    spool = Spool(100)
    spool.put(b"text")
    spool.close()
    assert (spool.put(b"more"), spool.take(10)) == (False, b"")
