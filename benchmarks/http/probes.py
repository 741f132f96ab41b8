"""How long a probe takes while the server has more to do than it can.

    python -m benchmarks.http probes --json benchmarks/results/probes.json         # a minute and a half

The engine answers at once, so that the parent process is what is full. Another process requests /livez and /readyz in
turn, on a new connection each time, as an orchestrator does, at random moments, twenty times a second: while nothing
else is sent; while 128 clients send as fast as they are answered, one text or 32 a request; and while 10,000 more
connections have started a request that they do not end. The memory of the parent process is shown as well.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import resource
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from typing import Any

import numpy as np
import uvloop

from benchmarks.common import about, parser_of, save
from benchmarks.http.load import bodies_of, closed_loop, make_texts, null_server, shipped_model
from tests.support.servers import Server

RATE = 20.0
CLIENTS = 128


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    texts = make_texts(shipped_model())
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with null_server() as server:
        found = {"idle": probed(server, None, arguments.seconds)}
        for inputs in (1, 32):
            found[f"full, {inputs} texts"] = probed(server, bodies_of(texts, inputs), arguments.seconds)
        with started(server.port, arguments.connections):
            name = f"full, {arguments.connections} more connections"
            found[name] = probed(server, bodies_of(texts, 1), arguments.seconds)
    print(json.dumps(found, indent=2))
    save(about(arguments, argv, "uvicorn", "uvloop") | {"probes": found}, arguments.json)
    return 0


def probed(server: Server, bodies: list[bytes] | None, seconds: float) -> dict[str, Any]:
    """The probes are sent by a process of their own, while this one sends the load."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        probing = pool.submit(probe, server.port, seconds)
        load = uvloop.run(closed_loop(server, bodies, CLIENTS, seconds)) if bodies else {}
        latencies = 1000 * np.asarray(probing.result())
    p50, p99, most = (round(float(value), 2) for value in np.percentile(latencies, (50, 99, 100)))
    rate = {"requests_per_s": round(load["requests_per_s"], 1)} if load else {}
    memory = round(server.process.memory_info().rss / 1e6, 1)
    return {"probes": len(latencies), "p50_ms": p50, "p99_ms": p99, "max_ms": most, **rate, "parent_memory_mb": memory}


def probe(port: int, seconds: float) -> list[float]:
    """Seconds from connecting to the end of a 200; RuntimeError for any other answer."""
    rng, end = random.Random(1), time.monotonic() + seconds
    taken = []
    while time.monotonic() < end:
        for path in ("/livez", "/readyz"):
            time.sleep(rng.expovariate(RATE))
            begin = time.perf_counter()
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", path, headers={"Connection": "close"})
            reply = connection.getresponse()
            reply.read()
            if reply.status != 200:
                raise RuntimeError(f"{path} answers {reply.status}")
            taken.append(time.perf_counter() - begin)
    return taken


@contextmanager
def started(port: int, count: int) -> Iterator[None]:
    """Connections that have sent half a head."""
    with ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            connection.sendall(b"POST /v1/classify HTTP/1.1\r\nX: ")
        yield


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("http probes", __doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each part (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=10_000, help="that are started (default: %(default)s)")
    return parser.parse_args(argv)
