"""What tracing costs: CPU time of a request in the parent process, tracing off and on, in turns.

    python -m benchmarks.http tracing --json benchmarks/results/tracing.json

Closed loop of 8 clients on loopback, requests of one row of 32 tokens, the engine answers at once. Spans go to a
collector in this process that discards them. Medians over the turns, export included; ratio: tracing.sample_ratio.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from benchmarks.common import about, parser_of, save
from benchmarks.http.load import bodies_of, in_turns, make_texts, null_server, shipped_model

RATIOS = (0.0, 0.01, 0.1, 1.0)
CLIENTS = 8


class Discarding(BaseHTTPRequestHandler):
    """Reads a request and answers 200."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """No-op."""


@contextmanager
def collecting() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Discarding) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{collector.server_port}"
        collector.shutdown()


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    bodies = bodies_of(make_texts(shipped_model()), 1)
    with ExitStack() as stack:
        url = stack.enter_context(collecting())
        servers = {"off": stack.enter_context(null_server())}
        for ratio in RATIOS:
            flags = ("--tracing-endpoint", url, "--tracing-sample-ratio", str(ratio))
            servers[f"ratio {ratio:g}"] = stack.enter_context(null_server(*flags))
        found = in_turns(servers, bodies, CLIENTS, arguments)
    results = [{"tracing": name, **measured} for name, measured in found.items()]
    for entry in results:
        print(" ".join(f"{key} {value}" for key, value in entry.items()))
    report = {
        "what": "CPU time of a request in the parent process, without and with tracing",
        **about(arguments, argv, "opentelemetry-sdk", "uvicorn", "uvloop"),
        "turns": arguments.turns,
        "seconds_of_a_turn": arguments.seconds,
        "results": results,
    }
    save(report, arguments.json)
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("http tracing", __doc__)
    parser.add_argument("--turns", type=int, default=5, help="(default: 5)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one turn (default: 4)")
    return parser.parse_args(argv)
