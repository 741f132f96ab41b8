"""How long a probe takes while the server has more to do than it can.

    python -m benchmarks.probes --json benchmarks/results/probes.json         # a minute and a half

A service whose engine answers at once (`benchmarks.front_server`), so that its one Python process is what is full.
Another process asks /livez and /readyz in turn, on a connection of its own each time, as an orchestrator does, at
random moments, twenty times a second: while nothing else is asked; while 128 clients ask as fast as they are answered,
one text or 32 in a request; and while beside them 10,000 connections have begun a request that they do not end. With
it goes the memory of the server's parent.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.about import about, parser_of, save
from benchmarks.front_client import Server, make_texts, messages_of, serving, throughput
from service.checkpoints.checkpoint import parse_spec, resolve
from service.commands.models import SHIPPED, locate_shipped
from service.tasks.text_model import TextModel

ROOT = Path(__file__).parent.parent
RATE = 20.0
CLIENTS = 128
PROBE = b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def main() -> None:
    arguments = _parse()
    if arguments.ask:
        print(json.dumps(list(ask(arguments.ask, arguments.seconds))))
        return
    texts = make_texts(TextModel.load(resolve(locate_shipped(parse_spec(SHIPPED)))))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with serving("this", ROOT) as server:
        found = {"idle": probed(server, None, arguments.seconds)}
        for inputs in (1, 32):
            messages = messages_of(texts, inputs)
            found[f"full, {inputs} texts"] = probed(server, messages, arguments.seconds)
        with begun(server.port, arguments.connections):
            messages = messages_of(texts, 1)
            found[f"full, {arguments.connections} connections beside"] = probed(server, messages, arguments.seconds)
    print(json.dumps(found, indent=2))
    made = about("probes", __doc__, arguments.machine, "uvicorn", "uvloop")
    save(made | {"probes": found}, arguments.json)


def probed(server: Server, messages: list[bytes] | None, seconds: float) -> dict[str, Any]:
    """A prober in a process of its own, beside the load."""
    command = [sys.executable, "-m", "benchmarks.probes", "--ask", str(server.port), "--seconds", str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as prober:
        load = uvloop.run(throughput(server, messages, CLIENTS, seconds)) if messages else {}
        told, _ = prober.communicate()
    latencies = 1000 * np.asarray(json.loads(told))
    shown = {f"p{percent}_ms": round(float(np.percentile(latencies, percent)), 2) for percent in (50, 99)}
    rate = {"requests_per_s": round(load["requests_per_s"], 1)} if load else {}
    memory = round(server.process.memory_info().rss / 1e6, 1)
    most = round(float(latencies.max()), 2)
    return {"probes": len(latencies), **shown, "max_ms": most, **rate, "parent_memory_mb": memory}


def ask(port: int, seconds: float) -> Iterator[float]:
    """Seconds from connecting to the end of a 200; anything else ends the run."""
    rng, end = random.Random(1), time.monotonic() + seconds
    while time.monotonic() < end:
        for path in (b"/livez", b"/readyz"):
            time.sleep(rng.expovariate(RATE))
            started = time.perf_counter()
            with socket.create_connection(("127.0.0.1", port), 10) as connection:
                connection.sendall(PROBE % path)
                reply = b"".join(iter(lambda: connection.recv(65536), b""))
            if not reply.startswith(b"HTTP/1.1 200 "):
                sys.exit(f"probes: {reply[:100]!r}")
            yield time.perf_counter() - started


@contextmanager
def begun(port: int, count: int) -> Iterator[None]:
    """Connections that have sent half a head."""
    with ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            connection.sendall(b"POST /v1/classify HTTP/1.1\r\nX: ")
        yield


def _parse() -> argparse.Namespace:
    parser = parser_of("probes", __doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each part (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=10_000, help="that are begun (default: %(default)s)")
    parser.add_argument("--ask", type=int, metavar="PORT", help="be the prober")
    return parser.parse_args()


if __name__ == "__main__":
    main()
