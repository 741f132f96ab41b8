"""A full queue of a real server: requests beyond the limit are refused, and every admitted one is answered."""

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
NO_HANG_DETECTION = ("--hang-factor", "1000000")
"""A stopped replica looks hung; it must not be restarted here."""

UNREAD = b"POST /v1/embed HTTP/1.1\r\nHost: x\r\nX-Request-Priority: bulk\r\nContent-Length: 1000000\r\n\r\n"


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """Stops the process inside the block."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def embed(client: httpx.Client, number: int, priority: str) -> httpx.Response:
    """Sends a row of ROW_TOKENS that differs for each number: equal rows would be computed once."""
    text = COMMON[number] * (ROW_TOKENS - 2)
    return client.post("/v1/embed", json={"inputs": text}, headers={"X-Request-Priority": priority})


def first_bytes_of_the_reply(server: Running, message: bytes) -> bytes:
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port or 80), ANSWER_S) as client:
        client.sendall(message)
        return client.recv(65_536)


def test_a_full_queue_refuses_requests_unread_and_answers_the_admitted_ones() -> None:
    with (
        serving("--model", "mini", *LIMITS, *NO_HANG_DETECTION) as server,
        httpx.Client(base_url=server.url, timeout=ANSWER_S) as client,
        ThreadPoolExecutor(QUEUE_ROWS + 3) as callers,
    ):
        (replica,) = server.children()

        def submit(number: int, priority: str = "bulk") -> Future[httpx.Response]:
            return callers.submit(embed, client, number, priority)

        def holds(in_flight: int, waiting: int) -> bool:
            found = server.metrics()
            tokens = found["erlangshen_tokens_in_flight"], found["erlangshen_queue_tokens"]
            return tokens == (in_flight * ROW_TOKENS, waiting * ROW_TOKENS)

        assert embed(client, 0, "bulk").status_code == 200
        with stopped(replica):
            accepted = []
            for num_in_flight in (1, 2):  # one is computed, one waits in the pipe
                accepted.append(submit(num_in_flight))
                until(lambda num=num_in_flight: holds(num, 0))
            accepted += [submit(number) for number in range(3, 3 + QUEUE_ROWS)]
            until(lambda: holds(2, QUEUE_ROWS))
            refusal = embed(client, 99, "bulk")
            assert (refusal.status_code, refusal.json()["code"]) == (429, "queue_full")
            assert 0 < int(refusal.headers["retry-after-ms"]) <= 1000 * int(refusal.headers["retry-after"])
            assert first_bytes_of_the_reply(server, UNREAD).startswith(b"HTTP/1.1 429 ")
            accepted.append(submit(50, "interactive"))
            until(lambda: holds(2, QUEUE_ROWS + 1))  # a queue full of bulk requests does not refuse an interactive one
        assert [one.result().status_code for one in accepted] == [200] * (QUEUE_ROWS + 3)
        until(lambda: holds(0, 0))
        assert server.metrics()['erlangshen_jobs_refused_total{reason="queue_full"}'] == 2
