"""Sends broken HTTP to a real server, and looks whether it stays well.

    python -m benchmarks.fuzz --json FILE              # a minute

Starts the server with the model that ships and short times to wait (a second). Many clients, each with a connection of
its own at a time: a whole request of any task, or a few in a row, in which bytes are flipped, cut, repeated, inserted
(numbers, line ends, pieces of headers, JSON, UTF-8), sent in pieces, sometimes left in the middle. Every connection has
to end: answered, or closed by the server. Ends with 1 where one did not, where an answer was 500, where the server was
not well afterwards: a good request answered, no connection left open.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import time
import urllib.request
from collections import Counter
from typing import Any

import psutil

from benchmarks.about import about, save
from benchmarks.loaded_server import parser_of, serving
from service.api.openapi import EXAMPLES

WAIT_S = 1
PATIENCE_S = 30.0
"""For the end of a connection: what the server may wait for, and a busy machine."""
FLAGS = [part for name in ("header", "body", "send") for part in (f"--{name}-timeout-s", str(WAIT_S))]
FRAMES = (b"\r\n\r\n", b"\r\n", b"\n", b"\r", b"\x00", b"\xff\xfe", b" ", b":", b"%00", b"%ff", b"/../", b"HTTP/2.0")
HEADERS = (
    b"Content-Length: 0",
    b"Content-Length: 99999999999999999999",
    b"Content-Length: -1",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Content-Encoding: gzip",
    b"Expect: 100-continue",
    b"Connection: close",
    b"Connection: Upgrade\r\nUpgrade: h2c",
    b"X: " + b"a" * 40_000,
    b"a: b\r\n" * 500,
)
CHUNKS = (b"0\r\n\r\n", b"ffffffff\r\n", b"5;a=b\r\n")
VALUES = (
    b"[" * 2000,
    b'{"a":' * 2000,
    b"NaN",
    b"1e999",
    b'"\\ud800"',
    b"null",
    b"\xe5\xa5",
    b"\xf0\x9f\x98",
    b"\x1f\x8b",
)
PIECES = (*FRAMES, *(header + b"\r\n" for header in HEADERS), *CHUNKS, *VALUES)
_STATUS = re.compile(rb"HTTP/1\.1 (\d+) ")


def main() -> int:
    arguments = _parse()
    with serving("mini", arguments.port, *FLAGS, "--keep-alive-s", str(WAIT_S)) as server:
        before = server.process.memory_info().rss
        outcomes = asyncio.run(attack(server.port, arguments))
        found = {"connections": outcomes.total(), "outcomes": dict(sorted(outcomes.items()))}
        found |= _after(server.port, server.process)
        found["parent_memory_mb"] = [round(size / 1e6, 1) for size in (before, server.process.memory_info().rss)]
    print(json.dumps(found, indent=2))
    save(about("fuzz", __doc__, arguments.machine, "uvicorn", "httptools") | found, arguments.json)
    return int(not is_well(found))


def is_well(found: dict[str, Any]) -> bool:
    outcomes = found["outcomes"]
    is_open_end = found["connections_open"] > 1 or "never ended" in outcomes
    return found["answers"] and not is_open_end and not any(name.startswith("5") for name in outcomes)


async def attack(port: int, arguments: argparse.Namespace) -> Counter[str]:
    """How the connections ended: by the last status, `closed` without one, or `never ended`."""
    outcomes: Counter[str] = Counter()
    end = time.monotonic() + arguments.seconds

    async def client(rng: random.Random) -> None:
        while time.monotonic() < end:
            outcomes[await _outcome(port, broken(rng), rng)] += 1

    await asyncio.gather(*(client(random.Random(arguments.seed + number)) for number in range(arguments.clients)))
    return outcomes


def broken(rng: random.Random) -> bytes:
    """One to three requests, changed in up to six places."""
    data = bytearray(b"".join(_request(rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))))
    for _ in range(rng.randrange(7)):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 4, 40))
        match rng.randrange(4):
            case 0:
                data[at : at + length] = b""
            case 1:
                data[at:at] = data[at : at + length] * rng.choice((1, 2, 100))
            case 2:
                data[at : at + length] = rng.randbytes(min(length, len(data) - at))
            case _:
                data[at:at] = rng.choice(PIECES)
    return bytes(data)


def _request(rng: random.Random) -> bytes:
    task = rng.choice(sorted(EXAMPLES))
    body = json.dumps(rng.choice(list(EXAMPLES[task].requests.values())), ensure_ascii=False).encode()
    if rng.random() < 0.1:
        return b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % rng.choice((b"/livez", b"/docs", b"/metrics", b"/v1/models"))
    if rng.random() < 0.3:
        framed, body = b"Transfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    else:
        framed = b"Content-Length: %d" % len(body)
    return b"POST /v1/%s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n%s" % (task.encode(), framed, body)


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


def _after(port: int, process: psutil.Process) -> dict[str, Any]:
    """The server when all clients have gone and its own times have passed."""
    time.sleep(3 * WAIT_S)
    body = json.dumps({"inputs": "好"}).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/embed", body, PATIENCE_S) as reply:
        answers = reply.status == 200
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        [connections] = re.findall(rb"^erlangshen_connections (\S+)", reply.read(), re.MULTILINE)
    return {"answers": answers, "connections_open": int(float(connections)), "descriptors": process.num_fds()}


def _parse() -> argparse.Namespace:
    parser = parser_of("fuzz", __doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=64, help="at the same time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the first client (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
