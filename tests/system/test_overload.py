"""A full queue of a real server: who is refused, when, and that everybody who was let in is answered."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import psutil
import pytest

from service.tools.bench.texts import COMMON
from tests.system.test_serve import ANSWER_S, Running, serving, until

pytestmark = pytest.mark.system

ROW_TOKENS = 20
QUEUE_ROWS = 10
LIMITS = ("--max-batch-tokens", str(3 * ROW_TOKENS), "--max-queue-tokens", str(QUEUE_ROWS * ROW_TOKENS))
PATIENCE = ("--hang-factor", "1000000")
"""A replica that is held hangs, and here nobody is to mind."""

UNREAD = b"POST /v1/embed HTTP/1.1\r\nHost: x\r\nX-Request-Priority: bulk\r\nContent-Length: 1000000\r\n\r\n"


@contextmanager
def holding(process: psutil.Process) -> Iterator[None]:
    """It computes nothing meanwhile."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def ask(client: httpx.Client, number: int, priority: str) -> httpx.Response:
    """A row of ROW_TOKENS that no other number has: equal ones would be computed once."""
    text = COMMON[number] * (ROW_TOKENS - 2)
    return client.post("/v1/embed", json={"inputs": text}, headers={"X-Request-Priority": priority})


def first_bytes_of_the_reply(server: Running, message: bytes) -> bytes:
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port or 80), ANSWER_S) as client:
        client.sendall(message)
        return client.recv(65_536)


def test_a_full_queue_refuses_unread_what_it_has_no_room_for_and_answers_what_it_let_in() -> None:
    with (
        serving(*LIMITS, *PATIENCE) as server,
        httpx.Client(base_url=server.url, timeout=ANSWER_S) as client,
        ThreadPoolExecutor(QUEUE_ROWS + 3) as callers,
    ):
        (replica,) = server.children()

        def let_in(number: int, priority: str = "bulk") -> Future[httpx.Response]:
            return callers.submit(ask, client, number, priority)

        def holds(in_flight: int, waiting: int) -> bool:
            found = server.metrics()
            tokens = found["erlangshen_tokens_in_flight"], found["erlangshen_queue_tokens"]
            return tokens == (in_flight * ROW_TOKENS, waiting * ROW_TOKENS)

        assert ask(client, 0, "bulk").status_code == 200
        with holding(replica):
            accepted = []
            for num_in_flight in (1, 2):  # one to compute, one to wait in its pipe
                accepted.append(let_in(num_in_flight))
                until(lambda num=num_in_flight: holds(num, 0))
            accepted += [let_in(number) for number in range(3, 3 + QUEUE_ROWS)]
            until(lambda: holds(2, QUEUE_ROWS))
            refusal = ask(client, 99, "bulk")
            assert (refusal.status_code, refusal.json()["code"]) == (429, "queue_full")
            assert 0 < int(refusal.headers["retry-after-ms"]) <= 1000 * int(refusal.headers["retry-after"])
            assert first_bytes_of_the_reply(server, UNREAD).startswith(b"HTTP/1.1 429 ")
            accepted.append(let_in(50, "interactive"))
            until(lambda: holds(2, QUEUE_ROWS + 1))  # what bulk requests have filled is no reason to refuse another
        assert [one.result().status_code for one in accepted] == [200] * (QUEUE_ROWS + 3)
        until(lambda: holds(0, 0))
        assert server.metrics()['erlangshen_jobs_refused_total{reason="queue_full"}'] == 2
