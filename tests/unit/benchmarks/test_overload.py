"""The open and closed loops against a server of a few lines, and when an overload is said to be over."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import repeat

import pytest

from benchmarks.loaded_server import message
from benchmarks.open_loop import NO_ANSWER, Reply, Sender
from benchmarks.overload import recovery_s

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
FULL = b'HTTP/1.1 429 Too Many Requests\r\nRetry-After-Ms: 5\r\ncontent-length: 21\r\n\r\n{"code":"queue_full"}'
MESSAGE = message({"inputs": "好"}, X_API_Key="k")


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[int]:
    """The answers in turn, for ever; b"" breaks the connection. Gives the port."""
    num = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num
        while await reader.read(len(MESSAGE)) == MESSAGE:
            answer = answers[num % len(answers)]
            num += 1
            writer.write(answer[:20])
            await asyncio.sleep(0)
            writer.write(answer[20:])
            if not answer:
                break
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def num_due(rate: float, seconds: float, seed: int) -> int:
    rng, due, num = random.Random(seed), 0.0, -1
    while due < seconds:
        due += rng.expovariate(rate)
        num += 1
    return num


async def test_an_open_loop_sends_what_is_due_whatever_comes() -> None:
    async with answering(OK, FULL, b"") as port:
        sender = Sender(port, repeat(MESSAGE))
        replies = await sender.open(500.0, 0.12, random.Random(1))
        sender.close()
    expected = num_due(500.0, 0.12, 1)
    assert len(replies) == expected > 40
    kinds = Counter((reply.status, reply.code, reply.has_retry_after) for reply in replies)
    assert kinds[200, "", False] == (expected + 2) // 3
    assert kinds[429, "queue_full", True] == (expected + 1) // 3
    assert kinds[NO_ANSWER, "", False] == expected // 3


async def test_where_nobody_listens_nothing_is_answered() -> None:
    async with answering(OK) as port:
        pass
    replies = await Sender(port, repeat(MESSAGE)).open(500.0, 0.02, random.Random(1))
    assert [reply.status for reply in replies] == [NO_ANSWER] * num_due(500.0, 0.02, 1)


async def test_a_closed_loop_sends_when_it_was_answered() -> None:
    async with answering(OK) as port:
        sender = Sender(port, repeat(MESSAGE))
        replies = await sender.closed(2, 0.3)
        sender.close()
    assert len(replies) > 2
    assert {reply.status for reply in replies} == {200}


@pytest.mark.parametrize(
    ("bad", "recovered"),
    [([], 0.0), ([Reply(10.5, 10.6, 429)], 0.5), ([Reply(10.5, 10.6, 429), Reply(11.5, 12.6, 200)], 1.5)],
    ids=["none", "refused", "late"],
)
def test_recovered_is_a_server_after_the_last_that_it_refused_or_was_late_for(
    bad: list[Reply], recovered: float
) -> None:
    good = [Reply(10.0 + number, 10.9 + number, 200) for number in range(5)]
    assert recovery_s([*good, *bad], target_s=1.0, ended=10.0) == recovered
