"""Loads a real server for a long time, injects a fault every minute, and looks for leaks and for lost requests.

    python -m benchmarks.soak --minutes 30 --json benchmarks/results/soak.json

Clients that know the right answers ask all tasks without a pause; strangers ask wrong, impatiently, in bulk, or hang
up. Ends with status 1 when a request was lost, an answer was odd, or something grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.about import about, auto_precision, save
from benchmarks.faults.cgroups import memory_group
from benchmarks.faults.clients import Clients, counted, questions
from benchmarks.faults.faults import FAULTS, Patient, possible
from benchmarks.faults.measure import recovered_s, totals
from benchmarks.faults.rolling import under_load
from benchmarks.faults.running import Instance, end_in_order, parser_of, running, until
from benchmarks.faults.strangers import Strangers
from benchmarks.faults.tables import WRONG_UNTIL_SEEN
from benchmarks.faults.watch import told, watch

SERVER = "benchmarks.faults.server"
END_S = 60.0
IDLE = ("queue_jobs", "queue_tokens", "batches_in_flight", "requests_in_progress")
"""Gauges that have to be zero once nobody asks."""


def main() -> int:
    arguments = _parse()
    end_in_order()
    report = {**_about(arguments), **asyncio.run(soak(arguments))}
    print(json.dumps(report, ensure_ascii=False, indent=2))
    save(report, arguments.json)
    return 0 if report["is_sound"] else 1


async def soak(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        orders = Path(folder)
        flags = ("--model", arguments.model, "--threads", "1", "--log-format", "json", "--log-level", "warning")
        replicas = arguments.replicas * ("--devices", "cpu")
        with memory_group() as group:
            server = Instance(orders / "log", (*flags, *replicas), (SERVER, str(orders)), group)
            with running(server):
                async with Clients(server.url, questions(arguments.questions), arguments.clients) as clients:
                    return await _soak(Patient(server, orders, clients, group), arguments)


async def _soak(patient: Patient, arguments: argparse.Namespace) -> dict[str, Any]:
    server, is_over, strangers = patient.server, asyncio.Event(), Strangers(patient.server.url)
    await patient.clients.learn()
    async with under_load(patient.clients):
        coming = asyncio.create_task(strangers.come_until(is_over))
        watching = asyncio.create_task(watch(server, patient.orders, is_over))
        try:
            faults = await _inject(patient, 60 * arguments.minutes, arguments.every)
        finally:
            is_over.set()
        await coming
        samples = await watching
    fits = patient.clients.taken()
    await until(lambda: not any(server.metric(name) for name in IDLE), END_S)
    lost = sum(each.is_lost for each in fits)
    taken = told(samples)
    return {
        "asked": len(fits),
        "outcomes": counted(fits),
        "lost": lost,
        "strangers": dict(sorted(strangers.answered.items())),
        "odd": dict(strangers.odd),
        "taken": taken,
        "counted_by_the_server": await asyncio.to_thread(totals, server),
        "faults": faults,
        "is_sound": not (lost or strangers.odd or taken["leaks"]),
    }


async def _inject(patient: Patient, seconds: float, every_s: float) -> list[dict[str, Any]]:
    """One fault after another until the time is over; each is waited for. The last part of the run is left in peace."""
    started, injected = time.monotonic(), []
    in_turn = cycle([fault for fault in possible(FAULTS, patient.group) if fault.name not in WRONG_UNTIL_SEEN])
    for number, fault in enumerate(in_turn, start=1):
        due = started + number * every_s
        if due > started + seconds - every_s:
            break
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        before, at_s = await asyncio.to_thread(totals, patient.server), time.monotonic()
        await fault.inject(patient)
        seconds_lost = await recovered_s(fault, patient.server, before) - at_s
        injected.append({"at_s": round(at_s - started), "fault": fault.name, "recovery_s": round(seconds_lost, 2)})
        print(json.dumps(injected[-1]), file=sys.stderr)
    await asyncio.sleep(max(0.0, started + seconds - time.monotonic()))
    return injected


def _about(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "what": "a long run under mixed load, with a fault every so often",
        **about("soak", __doc__, arguments.machine, "torch", "uvicorn", precision=auto_precision()),
        "model": arguments.model,
        "minutes": arguments.minutes,
        "seconds_between_faults": arguments.every,
        "clients": arguments.clients,
    }


def _parse() -> argparse.Namespace:
    parser = parser_of("soak", __doc__, clients=6, questions=100)
    parser.add_argument("--minutes", type=float, default=30.0, help="default: 30")
    parser.add_argument("--every", type=float, default=60.0, help="seconds from fault to fault (default: 60)")
    parser.add_argument("--replicas", type=int, default=2, help="default: 2")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
