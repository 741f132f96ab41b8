"""Clients as they come: careless, impatient, gone before their answer, or with very much at once.

Each knows what it may be answered. Knows the native HTTP API.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit

import httpx

PAUSE_S = 0.2
PATIENCE_S = 120.0
Call = Callable[[httpx.AsyncClient], Awaitable[int]]

BUSY = {429, 503, 504}
"""What anybody may be answered when there is too much to do."""


class Strangers:
    """`answered` counts what they got, by who they are; `odd` are the answers that they should not have got."""

    def __init__(self, url: str, seed: int = 1) -> None:
        self.answered: Counter[str] = Counter()
        self.odd: Counter[str] = Counter()
        self._url = url
        self._rng = random.Random(seed)

    async def come_until(self, is_over: asyncio.Event) -> None:
        """One after another, of every kind in turn by chance."""
        async with httpx.AsyncClient(base_url=self._url, timeout=PATIENCE_S, trust_env=False) as http:
            while not is_over.is_set():
                name = self._rng.choice(tuple(KINDS))
                call, expected = KINDS[name]
                status = await _status(call, http)
                self.answered[f"{name}: {status}"] += 1
                if status not in expected:
                    self.odd[f"{name}: {status}"] += 1
                await asyncio.sleep(PAUSE_S)


async def _status(call: Call, http: httpx.AsyncClient) -> int | str:
    try:
        return await call(http)
    except httpx.HTTPError as error:
        return type(error).__name__


async def _post(http: httpx.AsyncClient, body: bytes, path: str = "/v1/embed") -> int:
    return (await http.post(path, content=body)).status_code


def _embed(**fields: object) -> bytes:
    return json.dumps({"inputs": "今天天气怎么样？", **fields}).encode()


async def _no_json(http: httpx.AsyncClient) -> int:
    return await _post(http, b'{"inputs": ')


async def _unknown_field(http: httpx.AsyncClient) -> int:
    return await _post(http, _embed(colour="red"))


async def _unknown_model(http: httpx.AsyncClient) -> int:
    return await _post(http, _embed(model="nobody"))


async def _lost_way(http: httpx.AsyncClient) -> int:
    return await _post(http, _embed(), "/v1/nothing")


async def _impatient(http: httpx.AsyncClient) -> int:
    return await _post(http, _embed(timeout_ms=1))


async def _bulk(http: httpx.AsyncClient) -> int:
    texts = [f"第{number}篇文章，写得很长。" * 4 for number in range(32)]
    return await _post(http, _embed(inputs=texts, priority="bulk"))


async def _onlooker(http: httpx.AsyncClient) -> int:
    return (await http.get("/metrics")).status_code


async def _gone(http: httpx.AsyncClient) -> int:
    """Sends a whole request and hangs up; 0, as nobody is there to be answered."""
    url = urlsplit(str(http.base_url))
    _, writer = await asyncio.open_connection(url.hostname, url.port)
    body = _embed(inputs="好" * 200)
    writer.write(b"POST /v1/embed HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    await writer.drain()
    writer.close()
    return 0


KINDS: Mapping[str, tuple[Call, set[int]]] = {
    "sends no JSON": (_no_json, {400, 503}),
    "sends an unknown field": (_unknown_field, {422, 503}),
    "asks an unknown model": (_unknown_model, {404, 503}),
    "has lost its way": (_lost_way, {404}),
    "has a millisecond": (_impatient, {200, *BUSY}),
    "asks for 32 texts": (_bulk, {200, *BUSY}),
    "looks at the metrics": (_onlooker, {200}),
    "hangs up": (_gone, {0}),
}
