"""One fault in one server under load: what its clients got, and how long it took until all was well again.

Knows the clients' notes and the server's own metrics; draws no table.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from benchmarks.faults.clients import RIGHT, RequestContext, counted
from benchmarks.faults.faults import Fault, Patient
from benchmarks.faults.rolling import under_load
from benchmarks.faults.running import Instance, until
from service.metric_labels import LOSS_REASONS

BEFORE_S, AFTER_S = 3.0, 2.0
"""Of load without a fault."""

RECOVERY_S = 300.0
COUNTERS = ("jobs_given_back", "failed_rows", "out_of_memory")


async def measure(fault: Fault, patient: Patient) -> dict[str, Any]:
    """TimeoutError when the server does not become whole again."""
    server, clients = patient.server, patient.clients
    await clients.learn()
    before = await asyncio.to_thread(totals, server)
    async with under_load(clients):
        await asyncio.sleep(BEFORE_S)
        injected_s = time.monotonic()
        await fault.inject(patient)
        well_s = await recovered_s(fault, server, before)
        await asyncio.sleep(AFTER_S)
    after = await asyncio.to_thread(totals, server)
    fits = clients.taken()
    return {
        "fault": fault.name,
        "what": fault.what,
        "replicas": len(server.states()),
        **summary(fits, injected_s),
        "recovery_s": round(well_s - injected_s, 2),
        "counted_by_the_server": {name: after[name] - before[name] for name in after if after[name] > before[name]},
    }


async def recovered_s(fault: Fault, server: Instance, before: Mapping[str, float]) -> float:
    """When all replicas computed again, after so many were lost as the fault costs."""
    if reason := fault.reason:
        wanted = before[reason] + (fault.losses or len(server.states()))
        await until(lambda: server.metric("replica_losses_total", reason=reason) >= wanted, RECOVERY_S)
        await until(server.is_whole, RECOVERY_S)
    return time.monotonic()


def totals(server: Instance) -> dict[str, float]:
    """Replicas lost, by reason, and what else the server counted."""
    lost = {reason: server.metric("replica_losses_total", reason=reason) for reason in LOSS_REASONS}
    return lost | {name: server.metric(f"{name}_total") for name in COUNTERS}


def summary(fits: Sequence[RequestContext], injected_s: float) -> dict[str, Any]:
    return {
        "asked": len(fits),
        "outcomes": counted(fits),
        "lost": sum(each.is_lost for each in fits),
        "silence_s": round(longest_silence_s(fits, injected_s), 2),
        "slowest_answer_s": round(max(each.ended_s - each.sent_s for each in fits), 2),
    }


def longest_silence_s(exchanges: Sequence[RequestContext], since_s: float) -> float:
    """The longest time from then on in which nobody got a right answer."""
    answered = sorted(each.ended_s for each in exchanges if each.outcome == RIGHT and each.ended_s >= since_s)
    return max((later - earlier for earlier, later in pairwise([since_s, *answered])), default=0.0)
