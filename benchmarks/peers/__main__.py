"""Measures this server against others that serve the same checkpoint.

    python -m benchmarks.peers --json benchmarks/results/peers.json

All run at once on this machine, each with the same number of compute threads, and all but the one that is measured are
suspended (SIGSTOP). Before the clock runs all have to agree on labels and scores. A peer that cannot be
installed, does not start or answers otherwise is left out, and the report says so.

Closed loop over whole passes of the same texts, four or more, one text a request; clocked from answer to answer while
all clients go on sending, so without a start and a tail. All rounds of few clients come before those of many. Ratios
are of one round. The CPU time of a request is that of all processes of a server: on a machine that others use as well
it is steadier than the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from tqdm import tqdm

from benchmarks.common import about, auto_precision, parser_of, save
from benchmarks.peers import processes
from benchmarks.peers.peers import OUR_PYTHON, PEERS, Place, Server, ours
from benchmarks.peers.processes import Running
from benchmarks.peers.rounds import Kind, Measured, answers, make_texts, measure, summarize, table
from service.checkpoints.checkpoint import describe
from tests.support.servers import free_port

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "int8": 0.3}
"""How far a score may be from the first server's. Random weights magnify what 8 bits leave out; a server with another
model differs by more in one text of eight."""
PRECISIONS = ("float32", "bfloat16", "int8")
LENGTHS, SEED = "lognormal:31:152", 1
CHECKED_TEXTS = 8


@dataclass(frozen=True, slots=True)
class Entrant:
    """A server in one precision."""

    name: str
    server: Server
    python: Path
    precision: str

    @property
    def kind(self) -> Kind:
        return Kind(self.precision, self.server.is_batching)

    def describe(self) -> dict[str, Any]:
        versions = processes.versions(self.python, self.server.packages)
        return {"how": self.server.how, "precision": self.precision, "versions": versions}


def main(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    left_out: dict[str, str] = {}
    precisions = args.precisions or [each for each in PRECISIONS if each != "bfloat16" or auto_precision() == each]
    mine = [Entrant(f"ours {precision}", ours(), OUR_PYTHON, precision) for precision in precisions]
    peers = installed([peer for peer in PEERS if peer.name in args.peers], precisions, left_out)
    if args.setup_only:
        return 1 if left_out else 0
    from benchmarks.peers.checkpoint import make_checkpoint  # imports torch and transformers

    model = make_checkpoint(processes.FOLDER.absolute() / "checkpoint")
    texts = make_texts(LENGTHS, args.requests, SEED)
    with ExitStack() as stack:
        onnx = exported(peers, model, left_out)
        servers = [start(stack, entrant, model, onnx, args.threads) for entrant in (*mine, *peers)]
        measured = uvloop.run(compare(servers, texts, len(mine), args, left_out))
    peers = [peer for peer in peers if peer.name not in left_out]
    levels = summarize(measured, {one.name: one.kind for one in mine}, {peer.name: peer.kind for peer in peers})
    print(table(levels))
    for name, reason in left_out.items():
        print(f"{name} is left out: {reason}")
    report = {
        "what": "requests per second of this server and of others that serve the same checkpoint",
        **about(args, argv, "torch", "uvicorn", "fastapi"),
        "checkpoint": "MegatronBert classifier of random numbers: 6 layers, 384 wide, 6 heads, 21,128 words",
        "texts": {"lengths_in_tokens": LENGTHS, "texts_in_a_pass": args.requests, "seed": SEED},
        "threads": args.threads,
        "rounds": args.rounds,
        "ours": {"how": ours().how, "precisions": precisions},
        "peers": {peer.name: peer.describe() for peer in peers},
        "left_out": left_out,
        "levels": levels,
        "runs_are": "round, server, concurrency, requests, seconds, CPU seconds of a request",
        "runs": [
            [one.round, one.server, one.concurrency, one.requests, round(one.seconds, 3), round(one.cpu_s, 5)]
            for one in measured
        ],
    }
    save(report, args.json)
    return 0


def installed(peers: Sequence[Server], wanted: Sequence[str], left_out: dict[str, str]) -> list[Entrant]:
    """Those whose environments can be made, in each precision that they compute in and that is wanted."""
    entrants = []
    for peer in peers:
        try:
            python = processes.ensure(peer.installed_as)
        except RuntimeError as error:
            left_out[peer.name] = str(error)
            continue
        for precision in (each for each in peer.precisions if each in wanted):
            name = peer.name if precision == "float32" else f"{peer.name} {precision}"
            entrants.append(Entrant(name, peer, python, precision))
    return entrants


def exported(peers: list[Entrant], model: Path, left_out: dict[str, str]) -> Path | None:
    """The model for the runtimes, where one is among the peers; without it they leave `peers`."""
    wanted = [peer for peer in peers if peer.server.is_exported]
    if not wanted:
        return None
    from benchmarks.peers.exported import export  # imports torch

    try:
        return export(describe(model, model.name), model, wanted[0].python, LENGTHS)
    except RuntimeError as error:
        for peer in wanted:
            left_out[peer.name] = str(error)
            peers.remove(peer)
        return None


def start(stack: ExitStack, entrant: Entrant, model: Path, onnx: Path | None, threads: int) -> Running:
    place = Place(entrant.python, model, free_port(), threads, entrant.precision, onnx)
    running = Running(entrant.name, entrant.server, place)
    stack.callback(running.stop)
    return running


async def compare(
    servers: Sequence[Running], texts: Sequence[str], num_ours: int, args: argparse.Namespace, left_out: dict[str, str]
) -> list[Measured]:
    """Waits for all, checks that they agree, measures. RuntimeError when one of ours, which come first, fails."""
    agreeing = await agreed(servers, texts[:CHECKED_TEXTS], num_ours, left_out)
    await asyncio.gather(*(server.quiet() for server in agreeing))
    for server in agreeing:
        server.suspend()
    measured = []
    with tqdm(total=args.rounds * len(args.concurrency) * len(agreeing), unit="run") as bar:
        async for one in measure(agreeing, texts, sorted(args.concurrency), args.rounds, args.seconds):
            bar.set_postfix_str(f"{one.server} c={one.concurrency}: {one.rate:.1f} requests/s", refresh=False)
            bar.update()
            measured.append(one)
    return measured


async def agreed(
    servers: Sequence[Running], texts: Sequence[str], num_ours: int, left_out: dict[str, str]
) -> list[Running]:
    """Those that answer, and as the first does; a peer that does not is ended, so that it takes nothing from others."""
    agreeing: list[Running] = []
    wanted: list[tuple[str, float]] = []
    for number, server in enumerate(servers):
        try:
            await server.ready(texts[0])
            found = await answers(server, texts)
            wanted = wanted or found
            check(server, found, wanted)
        except RuntimeError as error:
            if number < num_ours:
                raise
            left_out[server.name] = str(error)
            server.stop()
        else:
            agreeing.append(server)
    print(f"{len(agreeing)} servers agree on {len(texts)} texts", file=sys.stderr)
    return agreeing


def check(server: Running, found: Sequence[tuple[str, float]], wanted: Sequence[tuple[str, float]]) -> None:
    """RuntimeError for answers that are not those of the first server."""
    for (label, score), (other, other_score) in zip(wanted, found, strict=True):
        is_near = abs(score - other_score) <= TOLERANCE[server.precision]
        if not is_near or (label != other and server.precision == "float32"):
            raise RuntimeError(f"{server.name} answers {other} {other_score:.4f}, wanted {label} {score:.4f}")


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("peers", __doc__)
    names = [peer.name for peer in PEERS]
    parser.add_argument("--peers", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, help="default: those that this CPU computes in")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32], help="default: 1 8 32")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--requests", type=int, default=96, help="texts in a pass (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="least of one run (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="compute threads of every server (default: 1)")
    parser.add_argument("--setup-only", action="store_true", help="make the environments and end")
    args = parser.parse_args(argv)
    if args.requests <= max(args.concurrency):
        parser.error("--requests: wanted more texts than clients, as this server computes equal texts in flight once")
    return args


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except RuntimeError as error:
        sys.exit(f"error: {error}")
