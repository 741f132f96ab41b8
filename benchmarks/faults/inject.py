"""Injects every fault into real servers under load and counts what their clients got.

    python -m benchmarks.faults --json benchmarks/results/faults.json
    python -m benchmarks.faults --only "replica killed" --replicas 1

Closed loop of clients on loopback, one text a request, tasks in turn; every question was sent once before, to the
healthy server, and each answer is compared with that one. Lost: no answer, a wrong one, or none 2 s after the deadline.
recovery_s: from the fault until all replicas are ready again. silence_s: the longest time from the fault on without a
right answer. Exits with 1 when a request was lost. Prints the table of docs/reliability.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common import about, auto_precision, parser_of, save
from benchmarks.faults.cgroups import memory_group
from benchmarks.faults.faults import FAULTS, Fault, Target, possible, target
from service.metric_labels import LOSS_REASONS
from tests.support.clients import RIGHT, Exchange, Question, counted, questions
from tests.support.proxies import PROXIES, behind, is_installed
from tests.support.servers import Server, until

BEFORE_S, AFTER_S = 3.0, 2.0
"""Load before the fault and after the recovery."""

RECOVERY_S = 300.0
COUNTERS = ("jobs_given_back", "failed_rows", "out_of_memory")
WRONG_UNTIL_SEEN = {"wrong for good"}
"""What a device computed wrongly before the next canary has been answered: counted, but no failure of the run."""


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    exit_on_sigterm()
    report = {
        "what": "faults injected into a server under load",
        **about(arguments, argv, "torch", "uvicorn", precision=auto_precision()),
        **{name: getattr(arguments, name) for name in ("model", "clients", "deadline_s")},
        **asyncio.run(_run(arguments)),
    }
    rows = [*report["faults"], *report["proxied"]]
    print(table(rows))
    save(report, arguments.json)
    return int(any(row["lost"] for row in rows if row["fault"] not in WRONG_UNTIL_SEEN))


def exit_on_sigterm() -> None:
    """As Ctrl-C: contexts are left, so that no server stays behind."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


async def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    asked = questions(arguments.questions)
    wanted = [fault for fault in FAULTS if fault.name in arguments.only or not arguments.only]
    with memory_group() as group:
        faults = possible(wanted, group)
    for fault in wanted:
        if fault not in faults:
            print(f"{fault.name}: left out, no memory cgroup can be made here", file=sys.stderr)
    proxied = []
    with tempfile.TemporaryDirectory() as folder:
        measured = [
            await _one(fault, num_replicas, Path(folder), asked, arguments)
            for num_replicas in arguments.replicas
            for fault in faults
        ]
        for proxy in () if arguments.only else filter(is_installed, PROXIES):
            own = Path(tempfile.mkdtemp(dir=folder))
            during = await behind(proxy, own, asked, arguments.clients, ("--model", arguments.model))
            for name, exchanges in during.items():
                proxied.append({"fault": name, "proxy": proxy, **summary(exchanges, exchanges[0].sent_s)})
                print(json.dumps(proxied[-1]), file=sys.stderr)
    return {"faults": measured, "proxied": proxied}


async def _one(
    fault: Fault, num_replicas: int, folder: Path, asked: Sequence[Question], arguments: argparse.Namespace
) -> dict[str, Any]:
    """In a server of its own: no fault inherits the state that another one leaves."""
    flags = ["--model", arguments.model, "--threads", "1", "--canary-interval-s", "2", "--log-format", "json"]
    flags += num_replicas * ["--devices", "cpu"]
    own = Path(tempfile.mkdtemp(dir=folder))
    async with target(own, flags, asked, arguments.clients, arguments.deadline_s) as found:
        measured = await measure(fault, found)
    print(json.dumps(measured), file=sys.stderr)
    return measured


async def measure(fault: Fault, target: Target) -> dict[str, Any]:
    """TimeoutError when the server does not recover."""
    server, clients = target.server, target.clients
    await clients.learn()
    before = await asyncio.to_thread(totals, server)
    async with clients.load():
        await asyncio.sleep(BEFORE_S)
        injected_s = time.monotonic()
        await fault.inject(target)
        recovered = await recovered_s(fault, server, before)
        await asyncio.sleep(AFTER_S)
    after = await asyncio.to_thread(totals, server)
    return {
        "fault": fault.name,
        "what": fault.what,
        "replicas": len(server.states()),
        **summary(clients.taken(), injected_s),
        "recovery_s": round(recovered - injected_s, 2),
        "counted_by_the_server": {name: after[name] - before[name] for name in after if after[name] > before[name]},
    }


async def recovered_s(fault: Fault, server: Server, before: Mapping[str, float]) -> float:
    """The time at which all replicas are ready, after the losses that the fault costs."""
    if reason := fault.reason:
        wanted = before[reason] + (fault.losses or len(server.states()))
        await until(lambda: server.metric("replica_losses_total", reason=reason) >= wanted, RECOVERY_S)
        await until(server.is_whole, RECOVERY_S)
    return time.monotonic()


def totals(server: Server) -> dict[str, float]:
    """Lost replicas by reason, and the other counters of faults."""
    lost = {reason: server.metric("replica_losses_total", reason=reason) for reason in LOSS_REASONS}
    return lost | {name: server.metric(f"{name}_total") for name in COUNTERS}


def summary(exchanges: Sequence[Exchange], injected_s: float) -> dict[str, Any]:
    return {
        "asked": len(exchanges),
        "outcomes": counted(exchanges),
        "lost": sum(each.is_lost for each in exchanges),
        "silence_s": round(longest_silence_s(exchanges, injected_s), 2),
        "slowest_answer_s": round(max(each.ended_s - each.sent_s for each in exchanges), 2),
    }


def longest_silence_s(exchanges: Sequence[Exchange], since_s: float) -> float:
    """The longest time from `since_s` on without a right answer."""
    answered = sorted(each.ended_s for each in exchanges if each.outcome == RIGHT and each.ended_s >= since_s)
    return max((later - earlier for earlier, later in pairwise([since_s, *answered])), default=0.0)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """In Markdown, as docs/reliability.md shows it."""
    head = "| fault | with | asked | 200 | other answers | lost | silence s | recovery s |\n|---|---|" + "---:|" * 6
    return "\n".join((head, *map(_line, rows)))


def _line(row: dict[str, Any]) -> str:
    outcomes = row["outcomes"]
    others = ", ".join(f"{count} x {name}" for name, count in outcomes.items() if name != RIGHT)
    cells = (
        f"{row['fault']}: {row['what']}" if "what" in row else row["fault"],
        row.get("proxy") or f"{row['replicas']} replica{'s' if row['replicas'] > 1 else ''}",
        row["asked"],
        outcomes.get(RIGHT, 0),
        others or "none",
        row["lost"],
        row["silence_s"],
        row.get("recovery_s", ""),
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("faults inject", __doc__)
    parser.add_argument("--model", default="mini", help="(default: mini)")
    parser.add_argument("--clients", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--questions", type=int, default=40, help="of each task (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="FAULT", choices=[fault.name for fault in FAULTS], default=[])
    parser.add_argument("--replicas", nargs="+", type=int, default=[1, 2], help="(default: 1 2)")
    parser.add_argument("--deadline-s", type=float, default=60.0, help="of each request (default: 60)")
    return parser.parse_args(argv)
