"""Injects every fault into real servers under load and counts what their clients got.

    python -m benchmarks.faults --json benchmarks/results/faults.json
    python -m benchmarks.faults --only "replica killed" --replicas 1

Ten minutes for all. Ends with status 1 when a request was lost: no answer, a wrong one, or one after its deadline.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.about import about, auto_precision, save
from benchmarks.faults.cgroups import memory_group
from benchmarks.faults.clients import Clients, Question, questions
from benchmarks.faults.faults import FAULTS, Fault, Patient, possible
from benchmarks.faults.measure import measure, summary
from benchmarks.faults.proxies import PROXIES, is_installed
from benchmarks.faults.rolling import behind
from benchmarks.faults.running import Instance, end_in_order, parser_of, running
from benchmarks.faults.tables import as_text, num_lost

SERVER = "benchmarks.faults.server"
METHOD = (
    "Closed loop of clients on loopback, one text a request, tasks in turn; every question was asked once before, when "
    "nothing was wrong, and each answer is compared with that one. Lost: no answer, a wrong one, or none 2 s after the "
    "deadline. recovery_s: from the fault to all replicas ready again. silence_s: the longest time from the fault on "
    "in which nobody got a right answer."
)


def main() -> int:
    arguments = _parse()
    end_in_order()
    report = asyncio.run(_run(arguments))
    print(as_text(report))
    save(report, arguments.json)
    return 1 if num_lost(report) else 0


async def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    asked = questions(arguments.questions)
    wanted = [fault for fault in FAULTS if fault.name in arguments.only or not arguments.only]
    with tempfile.TemporaryDirectory() as folder:
        faults = [
            measured
            for num_replicas in arguments.replicas
            for fault in wanted
            if (measured := await _of_one(fault, num_replicas, Path(folder), asked, arguments))
        ]
        proxied = [] if arguments.only else await _behind_proxies(Path(folder), asked, arguments)
    return {**_about(arguments), "faults": faults, "proxied": proxied}


async def _of_one(
    fault: Fault, num_replicas: int, folder: Path, asked: Sequence[Question], arguments: argparse.Namespace
) -> dict[str, Any] | None:
    """In a server of its own: what one fault leaves behind is not the next one's. None where it cannot be made here."""
    orders = Path(tempfile.mkdtemp(dir=folder))
    flags = (*_flags(arguments), *num_replicas * ("--devices", "cpu"))
    with memory_group() as group:
        if not possible([fault], group):
            print(f"{fault.name}: left out, no cgroup can be made here", file=sys.stderr)
            return None
        server = Instance(orders / "log", flags, (SERVER, str(orders)), group)
        with running(server):
            async with Clients(server.url, asked, arguments.clients, arguments.deadline) as clients:
                measured = await measure(fault, Patient(server, orders, clients, group))
    print(json.dumps(measured), file=sys.stderr)
    return measured


async def _behind_proxies(
    folder: Path, asked: Sequence[Question], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    measured = []
    for proxy in filter(is_installed, PROXIES):
        own = Path(tempfile.mkdtemp(dir=folder))
        during = await behind(proxy, own, asked, arguments.clients, ("--model", arguments.model))
        for name, fits in during.items():
            measured.append({"fault": name, "proxy": proxy, **summary(fits, fits[0].sent_s)})
            print(json.dumps(measured[-1]), file=sys.stderr)
    return measured


def _flags(arguments: argparse.Namespace) -> list[str]:
    return ["--model", arguments.model, "--threads", "1", "--canary-interval-s", "2", "--log-format", "json"]


def _about(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "what": "faults injected into a server under load",
        **about("faults", __doc__, arguments.machine, "torch", "uvicorn", method=METHOD, precision=auto_precision()),
        "model": arguments.model,
        "clients": arguments.clients,
        "deadline_s": arguments.deadline,
    }


def _parse() -> argparse.Namespace:
    parser = parser_of("faults", __doc__, clients=8, questions=40)
    parser.add_argument("--only", nargs="+", metavar="FAULT", choices=[fault.name for fault in FAULTS], default=[])
    parser.add_argument("--replicas", nargs="+", type=int, default=[1, 2], help="default: 1 2")
    parser.add_argument("--deadline", type=float, default=60.0, help="of each request, in seconds (default: 60)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
