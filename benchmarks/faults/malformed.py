"""Sends malformed HTTP to a real server and checks that it stays healthy.

    python -m benchmarks.faults malformed --json FILE              # a minute

The server runs `mini` with short timeouts (1 s). Each client opens one connection at a time and sends one to three
requests in which bytes are flipped, cut, repeated or inserted, in pieces, sometimes left in the middle. Every
connection has to end: answered, or closed by the server. Exits with 1 where one did not end, where an answer was 5xx,
or where the server does not answer a valid request afterwards or keeps a connection open.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

from benchmarks.common import about, parser_of, save
from tests.support.malformed import malformed
from tests.support.servers import Server, serving

WAIT_S = 1
PATIENCE_S = 30.0
"""For the end of a connection: the server's timeouts on a busy machine."""
FLAGS = [part for name in ("header", "body", "send") for part in (f"--{name}-timeout-s", str(WAIT_S))]
_STATUS = re.compile(rb"HTTP/1\.1 (\d+) ")


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    with serving("--model", "mini", "--threads", "1", *FLAGS, "--keep-alive-s", str(WAIT_S)) as server:
        before = server.process.memory_info().rss
        outcomes = asyncio.run(attack(server.port, arguments))
        found = {"connections": outcomes.total(), "outcomes": dict(sorted(outcomes.items())), **_after(server)}
        found["parent_memory_mb"] = [round(size / 1e6, 1) for size in (before, server.process.memory_info().rss)]
    print(json.dumps(found, indent=2))
    save(about(arguments, argv, "uvicorn", "httptools") | found, arguments.json)
    return int(not is_healthy(found))


def is_healthy(found: dict[str, Any]) -> bool:
    outcomes = found["outcomes"]
    is_closed = found["connections_open"] <= 1 and "never ended" not in outcomes
    return bool(found["answers"]) and is_closed and not any(name.startswith("5") for name in outcomes)


async def attack(port: int, arguments: argparse.Namespace) -> Counter[str]:
    """How the connections ended: by the last status, `closed` without one, `left` by the client, or `never ended`."""
    outcomes: Counter[str] = Counter()
    end = time.monotonic() + arguments.seconds

    async def client(rng: random.Random) -> None:
        while time.monotonic() < end:
            outcomes[await _outcome(port, malformed(rng), rng)] += 1

    await asyncio.gather(*(client(random.Random(arguments.seed + number)) for number in range(arguments.clients)))
    return outcomes


async def _outcome(port: int, data: bytes, rng: random.Random) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = bytearray()
    try:
        async with asyncio.timeout(PATIENCE_S):
            at = 0
            while at < len(data) and not writer.is_closing():
                step = rng.choice((1, 10, 1000, len(data)))
                writer.write(data[at : at + step])
                at += step
                await asyncio.sleep(0)
            if rng.random() < 0.1:
                return "left"
            while part := await reader.read(65536):
                received += part
    except TimeoutError:
        return "never ended"
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    statuses = _STATUS.findall(received)
    return statuses[-1].decode() if statuses else "closed"


def _after(server: Server) -> dict[str, Any]:
    """The server after all clients have disconnected and its timeouts have passed."""
    time.sleep(3 * WAIT_S)
    reply = httpx.post(f"{server.url}/v1/embed", json={"inputs": "好"}, timeout=PATIENCE_S, trust_env=False)
    connections, descriptors = int(server.metric("connections")), server.process.num_fds()
    return {"answers": reply.status_code == 200, "connections_open": connections, "descriptors": descriptors}


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("faults malformed", __doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="(default: %(default)s)")
    parser.add_argument("--clients", type=int, default=64, help="at the same time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the first client (default: %(default)s)")
    return parser.parse_args(argv)


PAUSE_S = 0.2
REPLY_S = 120.0
BUSY = {429, 503, 504}
"""Statuses that any request may get under overload."""


def _embed(**fields: object) -> bytes:
    return json.dumps({"inputs": "今天天气怎么样？", **fields}).encode()


MANY = [f"第{number}篇文章，写得很长。" * 4 for number in range(32)]
REQUESTS: Mapping[str, tuple[str, bytes, set[int]]] = {
    "invalid JSON": ("/v1/embed", b'{"inputs": ', {400, 503}),
    "unknown field": ("/v1/embed", _embed(colour="red"), {422, 503}),
    "unknown model": ("/v1/embed", _embed(model="unknown"), {404, 503}),
    "unknown path": ("/v1/nothing", _embed(), {404}),
    "deadline of 1 ms": ("/v1/embed", _embed(timeout_ms=1), {200, *BUSY}),
    "32 texts": ("/v1/embed", _embed(inputs=MANY, priority="bulk"), {200, *BUSY}),
}
"""Path, body and the statuses that are right."""

DISCONNECT = "disconnect"


class CarelessClients:
    """Invalid, hasty and bulk requests, and disconnects. `answered` counts all statuses, `unexpected` wrong ones."""

    def __init__(self, url: str, seed: int = 1) -> None:
        self.answered: Counter[str] = Counter()
        self.unexpected: Counter[str] = Counter()
        self._url = url
        self._rng = random.Random(seed)

    async def send_until(self, is_over: asyncio.Event) -> None:
        """One request at a time, of a random kind."""
        async with httpx.AsyncClient(base_url=self._url, timeout=REPLY_S, trust_env=False) as http:
            while not is_over.is_set():
                name = self._rng.choice((*REQUESTS, DISCONNECT))
                if name == DISCONNECT:
                    await disconnect(self._url)
                    self.answered[name] += 1
                else:
                    await self._send(http, name)
                await asyncio.sleep(PAUSE_S)

    async def _send(self, http: httpx.AsyncClient, name: str) -> None:
        path, body, expected = REQUESTS[name]
        try:
            status: int | str = (await http.post(path, content=body)).status_code
        except httpx.HTTPError as error:
            status = type(error).__name__
        self.answered[f"{name}: {status}"] += 1
        if status not in expected:
            self.unexpected[f"{name}: {status}"] += 1


async def disconnect(url: str) -> None:
    """Sends a whole request and closes the connection without reading."""
    address, body = urlsplit(url), _embed(inputs="好" * 200)
    _, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(b"POST /v1/embed HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    await writer.drain()
    writer.close()
