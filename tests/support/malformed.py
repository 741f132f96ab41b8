"""Malformed HTTP from a seed: requests of all tasks, changed in up to six places."""

from __future__ import annotations

import json
import random

from service.api.openapi import EXAMPLES

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


def malformed(rng: random.Random) -> bytes:
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
