"""The closed loop that `benchmarks.front` puts on a server that it starts: raw connections, prepared messages.

Knows just enough of HTTP for replies with a Content-Length: the client must cost less than what it measures.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil

from benchmarks.local_server import free_port, running
from service.tasks.text_model import TextModel

LABELS = ("体育", "财经")
ROW_TOKENS = 32
TEXT_TOKENS = ROW_TOKENS - 3 - 3 * len(LABELS)
"""Of a text: beside it stand [CLS], two [SEP] and, for each label, a [MASK] and two characters."""

NUM_TEXTS = 8192
WARM_UP_S = 1.0

_LENGTH = re.compile(rb"content-length: (\d+)")
_COMPUTE = re.compile(rb"compute;dur=([\d.]+)")


@dataclass(slots=True)
class Tally:
    """What the clients of one load saw."""

    latencies: list[float] = field(default_factory=list)
    refusals: list[bytes] = field(default_factory=list)


class Client(asyncio.Protocol):
    """One connection in a closed loop: the next message leaves when the reply to the last is whole."""

    def __init__(self, messages: Iterator[bytes], tally: Tally) -> None:
        self._messages = messages
        self._tally = tally
        self._reply = bytearray()
        self._is_over = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._reply += data
        head = self._reply.find(b"\r\n\r\n")
        length = _LENGTH.search(self._reply, 0, head) if head > 0 else None
        if length is None or len(self._reply) < head + 4 + int(length[1]):
            return
        self._tally.latencies.append(time.perf_counter() - self._sent)
        if not self._reply.startswith(b"HTTP/1.1 200"):
            self._tally.refusals.append(bytes(self._reply))
        self._reply.clear()
        if self._is_over:
            self._transport.close()
        else:
            self._send()

    def end(self) -> None:
        self._is_over = True

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(next(self._messages))


@dataclass(frozen=True, slots=True)
class Server:
    """A service in a process of its own."""

    name: str
    port: int
    process: psutil.Process

    def cpu_s(self) -> tuple[float, float]:
        """Of the parent and of its child, so far."""
        parts = [self.process, *self.process.children()]
        parent, *children = [sum(part.cpu_times()[:2]) for part in parts]
        return parent, sum(children)


@contextmanager
def serving(name: str, folder: Path, *flags: str) -> Iterator[Server]:
    port = free_port()
    with running(port, "benchmarks.front_server", str(port), *flags, folder=folder) as process:
        yield Server(name, port, psutil.Process(process.pid))


def make_texts(model: TextModel) -> list[str]:
    """Distinct texts of random characters with two commas and a number, each of ROW_TOKENS as a row."""
    rng = random.Random(1)
    words = [word for word in model.tokenizer.get_vocab() if len(word) == 1 and "\u4e00" <= word <= "\u9fff"]
    texts = (_text(rng.choices(words, k=TEXT_TOKENS - 3), rng.randint(10, 99)) for _ in range(2 * NUM_TEXTS))
    return list(islice((text for text in texts if len(model.tokenize([text])[0]) == TEXT_TOKENS), NUM_TEXTS))


def _text(words: Sequence[str], number: int) -> str:
    first, second, third = "".join(words[:6]), "".join(words[6:12]), "".join(words[12:])
    return f"{first}，{second}{number}，{third}"


def messages_of(texts: Sequence[str], inputs: int) -> list[bytes]:
    groups = [texts[start : start + inputs] for start in range(0, len(texts), inputs)]
    return [_message({"inputs": group, "labels": LABELS}) for group in groups]


def _message(body: dict[str, Any]) -> bytes:
    data = json.dumps(body, ensure_ascii=False).encode()
    return b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data)


async def throughput(server: Server, messages: Sequence[bytes], clients: int, seconds: float) -> dict[str, float]:
    """One turn of one load."""
    tally, source = Tally(), cycle(messages)
    loop = asyncio.get_running_loop()
    connect = [loop.create_connection(lambda: Client(source, tally), "127.0.0.1", server.port) for _ in range(clients)]
    protocols = [protocol for _, protocol in await asyncio.gather(*connect)]
    await asyncio.sleep(WARM_UP_S)
    tally.latencies.clear()
    before, started = server.cpu_s(), time.perf_counter()
    await asyncio.sleep(seconds)
    after, elapsed, latencies = server.cpu_s(), time.perf_counter() - started, sorted(tally.latencies)
    for protocol in protocols:
        protocol.end()
    if tally.refusals or not latencies:
        sys.exit(f"front: {server.name}: {len(tally.refusals)} requests refused: {tally.refusals[:1]}")
    parent, child = (1000 * (end - start) / len(latencies) for start, end in zip(before, after, strict=True))
    return {
        "requests_per_s": len(latencies) / elapsed,
        "p50_ms": 1000 * statistics.median(latencies),
        "p99_ms": 1000 * latencies[int(0.99 * len(latencies))],
        "parent_cpu_ms": parent,
        "child_cpu_ms": child,
    }


class Caller:
    """One connection, one request at a time, without an event loop."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call(self, message: bytes) -> tuple[float, float]:
        """Seconds of the round trip, and those of them that the child computed."""
        started = time.perf_counter()
        self._socket.sendall(message)
        reply = b""
        while not (found := _whole(reply)):
            reply += self._socket.recv(65536)
        elapsed = time.perf_counter() - started
        return elapsed, float(found[1]) / 1000


def _whole(reply: bytes) -> re.Match[bytes] | None:
    """The compute time in the head of a reply that is there to its end."""
    head = reply.find(b"\r\n\r\n")
    length = _LENGTH.search(reply, 0, head) if head > 0 else None
    if length is None or len(reply) < head + 4 + int(length[1]):
        return None
    return _COMPUTE.search(reply, 0, head)
