"""Measures this server against others that serve the same checkpoint: `python -m benchmarks.peers --help`.

All run at once on this machine, each with the same number of compute threads, and all but the one that is measured are
stopped in their tracks (SIGSTOP). Before the clock runs all have to agree on labels and scores.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop
from tqdm import tqdm

from benchmarks.local_server import free_port
from benchmarks.peers import environments
from benchmarks.peers.checkpoint import make_checkpoint
from benchmarks.peers.peers import OUR_PYTHON, PEERS, Place, Server, chosen, ours
from benchmarks.peers.ratios import summarize, table
from benchmarks.peers.rounds import Measured, answers, make_texts, measure
from benchmarks.peers.running import Running
from service.bench.measure import machine

RESULT = Path(__file__).parent.parent / "results" / "peers.json"
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""How far a score may be from the first server's."""
CHECKED_TEXTS = 8
METHOD = (
    "closed loop over whole passes of the same texts, one text a request, from the first request to the last answer; "
    "all servers run, all but the measured one are suspended; ratios are of one round"
)


def main(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    peers = chosen(args.peers.split(","))
    mine = [ours(precision) for precision in args.precisions.split(",")]
    places = [(server, OUR_PYTHON, server.name.removeprefix("ours ")) for server in mine]
    places += [(peer, environments.ensure(peer.name), args.peer_precision) for peer in peers]
    if args.setup_only:
        return 0
    model = make_checkpoint(environments.FOLDER.absolute() / "checkpoint")
    texts = make_texts(args.lengths, args.requests, args.seed)
    with ExitStack() as stack:
        servers = [start(stack, server, python, model, args.threads, precision) for server, python, precision in places]
        measured = uvloop.run(compare(servers, texts, args))
    levels = summarize(measured, [server.name for server in mine], {peer.name: peer.is_batching for peer in peers})
    print(table(levels))
    args.json.write_text(json.dumps(report(args, argv, peers, levels, measured), indent=2) + "\n", encoding="utf-8")
    return 0


def start(stack: ExitStack, server: Server, python: Path, model: Path, threads: int, precision: str) -> Running:
    place = Place(python, model, free_port(), threads, precision)
    running = Running(server, place, environments.FOLDER / f"{server.name.replace(' ', '-')}.log")
    stack.callback(running.stop)
    return running


async def compare(servers: Sequence[Running], texts: Sequence[str], args: argparse.Namespace) -> list[Measured]:
    """Waits for all, checks that they agree, measures. RuntimeError when one does not answer or answers otherwise."""
    for server in servers:
        await server.ready(texts[0])
    await check(servers, texts[:CHECKED_TEXTS])
    for server in servers:
        server.suspend()
    levels = [int(level) for level in args.concurrency.split(",")]
    with tqdm(total=args.rounds * len(levels) * len(servers), unit="run") as bar:

        def tell(one: Measured) -> None:
            bar.set_postfix_str(f"{one.server} c={one.concurrency}: {one.rate:.1f} requests/s", refresh=False)
            bar.update()

        return await measure(
            servers, texts, concurrencies=levels, rounds=args.rounds, min_seconds=args.seconds, report=tell
        )


async def check(servers: Sequence[Running], texts: Sequence[str]) -> None:
    """RuntimeError for a server that answers otherwise than the first."""
    wanted = await answers(servers[0], texts)
    for server in servers[1:]:
        found = await answers(server, texts)
        for (label, score), (other, other_score) in zip(wanted, found, strict=True):
            is_near = abs(score - other_score) <= TOLERANCE[server.precision]
            if not is_near or (label != other and server.precision == "float32"):
                raise RuntimeError(
                    f"{server.server.name} answers {other} {other_score:.4f}, wanted {label} {score:.4f}"
                )
    print(f"all {len(servers)} servers agree on {len(texts)} texts", file=sys.stderr)


def report(
    args: argparse.Namespace,
    argv: Sequence[str],
    peers: Sequence[Server],
    levels: Sequence[dict[str, Any]],
    measured: Sequence[Measured],
) -> dict[str, Any]:
    """What one must know to repeat the run, and every number of it."""
    about = {
        peer.name: {
            "how": peer.how,
            "precision": args.peer_precision,
            "versions": environments.versions(environments.ensure(peer.name), peer.packages),
        }
        for peer in peers
    }
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.peers", *argv]),
        "method": METHOD,
        "machine": machine(),
        "checkpoint": "MegatronBert classifier of random numbers: 6 layers, 384 wide, 6 heads, 21,128 words",
        "texts": {"lengths_in_tokens": args.lengths, "texts_in_a_pass": args.requests, "seed": args.seed},
        "threads": args.threads,
        "rounds": args.rounds,
        "python": platform.python_version(),
        "ours": {"how": ours("").how, "versions": environments.versions(OUR_PYTHON, ("torch", "uvicorn", "fastapi"))},
        "peers": about,
        "levels": list(levels),
        "runs_are": "round, server, concurrency, requests, seconds",
        "runs": [[one.round, one.server, one.concurrency, one.requests, round(one.seconds, 3)] for one in measured],
    }


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Ours against other servers.")
    names = ",".join(peer.name for peer in PEERS)
    parser.add_argument("--peers", default=names, help="default: %(default)s")
    parser.add_argument("--precisions", default="float32,bfloat16", help="ours (default: %(default)s)")
    parser.add_argument("--peer-precision", default="float32", choices=TOLERANCE, help="default: %(default)s")
    parser.add_argument("--concurrency", default="1,8,32", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--requests", type=int, default=96, help="texts in a pass (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="least of one run (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="compute threads of every server (default: 1)")
    parser.add_argument("--lengths", default="lognormal:31:152", help="of a text in tokens (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=RESULT, help="default: benchmarks/results/peers.json")
    parser.add_argument("--setup-only", action="store_true", help="make the environments and end")
    return parser.parse_args(argv)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
