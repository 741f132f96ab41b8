"""A minimal HTTP server for tests of the bench, with the responses of the real one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from service.tools.bench.load import Load, Tick

Answer = Callable[[str, Any], tuple[int, Any]]
MODELS = {
    "models": [
        {"name": "fake", "source": "mini", "precision": ["float32"], "num_layers": 2, "hidden_size": 8, "ffn_size": 16},
    ],
    "replicas": [{"name": "cpu", "device": "cpu", "threads": 1, "state": "ready"}],
}
METRICS = """# HELP erlangshen_batch_rows Rows in a batch.
erlangshen_batch_rows_bucket{{le="1.0"}} 0.0
erlangshen_batch_rows_count {batches}
erlangshen_batch_rows_sum {rows}
erlangshen_batch_tokens_sum {tokens}
erlangshen_compute_duration_seconds_sum{{model="fake"}} {seconds}
erlangshen_compute_duration_seconds_sum{{model="other"}} 0.0
erlangshen_shared_rows_total{{model="fake"}} {shared}
erlangshen_cache_hits_total{{model="fake"}} {kept}
"""


@asynccontextmanager
async def serving(answer: Answer, *, drops: bool = False) -> AsyncIterator[int]:
    """Yields the port. With `drops` the server closes each connection after a response, without `Connection: close`."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await _read_head(reader):
            lines = head.decode().split("\r\n")
            length = next(int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length"))
            content = await reader.readexactly(length)
            status, body = answer(lines[0].split(" ")[1], json.loads(content) if content else None)
            payload = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            writer.write(f"HTTP/1.1 {status} Fine\r\nContent-Length: {len(payload)}\r\n\r\n".encode() + payload)
            await writer.drain()
            if drops:
                break
        writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def _read_head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


class Service:
    """Answers every task except classification without labels.

    Every request is a batch with ten tokens per input. Half of the rows count as shared, a fifth as cached.
    """

    def __init__(self) -> None:
        self.num_rows = 0
        self.num_batches = 0

    def __call__(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, MODELS
        if path == "/metrics":
            rows, batches = self.num_rows, self.num_batches
            totals = {"batches": batches, "rows": rows, "tokens": 10 * rows, "seconds": batches / 1000}
            return 200, METRICS.format(**totals, shared=rows / 2, kept=rows / 5)
        if path == "/v1/classify" and "labels" not in body:
            return 422, {"detail": "no head"}
        self.num_batches += 1
        self.num_rows += len(body["inputs"])
        results = [{} for _ in body["inputs"]]
        return 200, {"model": "fake", "usage": {"tokens": 10 * len(body["inputs"])}, "results": results}


@contextmanager
def silent(_load: Load, _seconds: float) -> Any:
    """A progress bar that shows nothing."""
    tick: Tick = lambda seconds, requests: None  # noqa: E731
    yield tick
