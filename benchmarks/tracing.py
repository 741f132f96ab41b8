"""What tracing costs: the front with an engine that does nothing, tracing off and on, in turns.

    python -m benchmarks.tracing --json benchmarks/results/tracing.json

As `benchmarks.front` measures it: requests of one row in a closed loop. Spans go to a collector here that reads them
and throws them away. What counts is the CPU time of the service's parent process for a request, export included.
"""

from __future__ import annotations

import argparse
import statistics
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import uvloop
from tqdm import tqdm

from benchmarks.about import about, parser_of, save
from benchmarks.front_client import make_texts, messages_of, serving, throughput
from service.checkpoints.checkpoint import parse_spec, resolve
from service.commands.models import SHIPPED, locate_shipped
from service.tasks.text_model import TextModel

ROOT = Path(__file__).parent.parent
RATIOS = (0.0, 0.01, 0.1, 1.0)
CLIENTS = 8
METHOD = (
    f"closed loop of {CLIENTS} clients on loopback, requests of one row of 32 tokens, the engine answers at once; ways "
    "in turn, medians over the turns; ratio: tracing.sample_ratio"
)


class Discarding(BaseHTTPRequestHandler):
    """Reads what comes and forgets it."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Not a line for each."""


@contextmanager
def collecting() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Discarding) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{collector.server_port}"
        collector.shutdown()


def main() -> None:
    arguments = _parse()
    model = TextModel.load(resolve(locate_shipped(parse_spec(SHIPPED))))
    messages = messages_of(make_texts(model), 1)
    with ExitStack() as stack:
        url = stack.enter_context(collecting())
        ways = {"off": ()} | {
            f"ratio {ratio:g}": ("--collector", url, "--sample-ratio", str(ratio)) for ratio in RATIOS
        }
        servers = [stack.enter_context(serving(name, ROOT, *flags)) for name, flags in ways.items()]
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for _ in tqdm(range(arguments.turns), "turns"):
            for server in servers:
                turns[server.name].append(uvloop.run(throughput(server, messages, CLIENTS, arguments.seconds)))
    report = {**_setting(arguments), "results": [_entry(name, found) for name, found in turns.items()]}
    for entry in report["results"]:
        print(" ".join(f"{key} {value}" for key, value in entry.items()))
    save(report, arguments.json)


def _entry(name: str, turns: list[dict[str, float]]) -> dict[str, Any]:
    return {"tracing": name} | {key: round(statistics.median(turn[key] for turn in turns), 3) for key in turns[0]}


def _setting(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "what": "CPU time of a request in the parent process, without and with tracing",
        **about("tracing", __doc__, arguments.machine, "opentelemetry-sdk", "uvicorn", "uvloop", method=METHOD),
        "turns": arguments.turns,
        "seconds_of_a_turn": arguments.seconds,
    }


def _parse() -> argparse.Namespace:
    parser = parser_of("tracing", __doc__)
    parser.add_argument("--turns", type=int, default=5, help="(default: 5)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one turn (default: 4)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
