"""Connections and the memory budget: what they hold is counted, bounded, and given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from service.api.memory import SMALL_BYTES, MemoryBudget
from service.server.http_protocol import READ_BYTES, STALLED_S
from service.settings import Server
from tests.contract.fakes import FakeSubmit
from tests.unit.server.test_http_protocol import BODY, GET, App, Peer, post, serving

BUDGET = 8 * SMALL_BYTES
LARGE = 4 * SMALL_BYTES
LIMITS = Server(max_body_bytes=BUDGET)


@asynccontextmanager
async def bounded(submit: FakeSubmit | None = None) -> AsyncIterator[tuple[App, MemoryBudget]]:
    async with serving(submit, limits=LIMITS) as app:
        memory = app.connection_limits.memory
        memory.max_bytes = BUDGET
        yield app, memory


def part_of_a_large_body(peer: Peer, num_bytes: int = LARGE) -> None:
    head = post(body=b"", announced=BUDGET)
    peer.send(head, *(b" " * SMALL_BYTES for _ in range(num_bytes // SMALL_BYTES)))


async def test_bytes_are_counted_until_the_response_has_been_sent() -> None:
    submit = FakeSubmit(gate=asyncio.Event())
    async with bounded(submit) as (app, memory):
        peer = app.connect()
        peer.send(post())
        await submit.arrived.wait()
        assert memory.used > len(post())
        assert submit.gate is not None
        submit.gate.set()
        assert await peer.answered() == [(200, "")]
        assert memory.used == 0


async def test_bytes_of_a_lost_connection_are_given_back() -> None:
    async with bounded() as (app, memory):
        peer = app.connect()
        part_of_a_large_body(peer)
        assert memory.used > LARGE
        peer.lose()
        await asyncio.gather(*peer.connection.tasks)
        assert memory.used == 0


async def test_large_bodies_beyond_the_budget_are_503_and_small_requests_pass() -> None:
    async with bounded() as (app, memory):
        first, second = app.connect(), app.connect()
        part_of_a_large_body(first)
        part_of_a_large_body(second)
        assert await second.answered() == [(503, "memory_full")]
        assert b"retry-after: 1\r\n" in second.transport.written.lower()
        assert memory.used <= BUDGET * 3 // 4
        small = app.connect()
        small.send(post())
        assert await small.answered() == [(200, "")]
        assert app.refused("memory_full") == 1
        first.lose()


async def test_a_stalled_large_body_makes_room_for_another() -> None:
    async with bounded() as (app, memory):
        stalled, other = app.connect(), app.connect()
        part_of_a_large_body(stalled)
        stalled.loop.now += STALLED_S
        other.loop.now += STALLED_S
        part_of_a_large_body(other)
        assert await stalled.answered() == [(503, "memory_full")]
        assert other.transport.written == b""
        other.lose()
        assert memory.used == 0


async def test_pipelined_requests_are_not_counted_forever() -> None:
    async with bounded() as (app, memory):
        peer = app.connect()
        for count in range(1, 21):
            peer.send(GET + GET)
            await peer.answered(2 * count)
            assert memory.used <= READ_BYTES
        assert memory.used == 0


async def test_a_reply_that_the_client_does_not_read_is_counted() -> None:
    async with bounded() as (app, memory):
        peer = app.connect()
        cast(Any, peer.transport).get_write_buffer_size = lambda: LARGE
        peer.connection.pause_writing()
        assert memory.used == LARGE
        peer.connection.resume_writing()
        assert memory.used == 0
        peer.connection.pause_writing()
        peer.lose()
        assert memory.used == 0


async def test_a_request_whose_reply_has_no_room_is_503() -> None:
    async with bounded() as (app, memory):
        memory.add(BUDGET - 2 * len(post()))
        peer = app.connect()
        peer.send(post(body=BODY))
        assert await peer.answered() == [(503, "memory_full")]
