"""The faults that are injected into a server under load, and what each is: done to a process, or ordered from one.

Knows the server as an `Instance` and a folder of orders; measures nothing.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.faults.cgroups import MemoryGroup
from benchmarks.faults.clients import Clients, Question
from benchmarks.faults.orders import KILLER_TOKENS, POISON_TOKENS, Order, give, is_open
from benchmarks.faults.running import Instance, until
from service.metric_labels import LossReason

OBEYED_S = 60.0
OOM_BYTES = 1 << 28
"""What a server may take beyond what it has, before the kernel ends one of its processes."""


@dataclass(frozen=True, slots=True)
class Patient:
    """A server under load."""

    server: Instance
    orders: Path
    clients: Clients
    group: MemoryGroup | None


@dataclass(frozen=True, slots=True)
class Fault:
    """`losses` is how many replicas it costs, for the reason that the metrics should give."""

    name: str
    what: str
    inject: Callable[[Patient], Awaitable[None]]
    reason: LossReason | None = None
    losses: int = 0


async def signal_one(patient: Patient, number: signal.Signals) -> None:
    patient.server.replicas()[0].send_signal(number)


async def kill_all(patient: Patient) -> None:
    for replica in patient.server.replicas():
        replica.kill()


async def order(patient: Patient, what: Order) -> None:
    """Returns when a replica has taken it."""
    give(patient.orders, what)
    await until(lambda: not is_open(patient.orders, what), OBEYED_S)


async def ask_for(patient: Patient, num_tokens: int) -> None:
    """A client like the others, with one question that the forward cannot bear, beside theirs."""
    body = {"inputs": "好" * (num_tokens - 2)}  # and the two special tokens
    await patient.clients.ask(Question("fault", "/v1/embed", json.dumps(body).encode()))


async def run_out_of_memory(patient: Patient) -> None:
    """A replica takes more than the cgroup of the whole server has, and the kernel ends the largest process in it."""
    assert patient.group is not None, "where there is none, this is left out"
    lost = await asyncio.to_thread(patient.server.metric, "replica_losses_total")
    patient.group.allow(OOM_BYTES)
    give(patient.orders, "eat")
    await until(lambda: patient.server.metric("replica_losses_total") > lost, OBEYED_S)
    patient.group.lift()


FAULTS = (
    Fault("replica killed", "kill -9", partial(signal_one, number=signal.SIGKILL), "killed", 1),
    Fault("replica stopped", "kill -STOP: it hangs", partial(signal_one, number=signal.SIGSTOP), "hang", 1),
    Fault("replica crashes", "SIGSEGV", partial(signal_one, number=signal.SIGSEGV), "crash", 1),
    Fault("replica exits", "_exit(3) in the forward", partial(order, what="exit"), "exit", 1),
    Fault("replica aborts", "abort() in the forward", partial(order, what="abort"), "crash", 1),
    Fault("all replicas killed", "kill -9 of each", kill_all, "killed", 0),
    Fault("out of memory, by the kernel", "a memory cgroup's OOM kill", run_out_of_memory, "oom", 1),
    Fault("forward raises", "once", partial(order, what="raise")),
    Fault("little memory", "torch.OutOfMemoryError in larger batches, for good", partial(order, what="little room")),
    Fault("NaN once", "in all rows of one batch", partial(order, what="nan")),
    Fault("NaN for good", "in all rows from then on", partial(order, what="nan for good"), "wrong", 1),
    Fault("wrong for good", "finite but wrong, raising nothing", partial(order, what="wrong for good"), "wrong", 1),
    Fault("poison row", "one row on which the forward raises", partial(ask_for, num_tokens=POISON_TOKENS)),
    Fault("killer row", "one row of which the process dies", partial(ask_for, num_tokens=KILLER_TOKENS), "killed", 2),
)
"""`losses` of 0 with a reason: of every replica."""


def possible(faults: Sequence[Fault], group: MemoryGroup | None) -> list[Fault]:
    """Those that can be made here."""
    return [fault for fault in faults if group is not None or fault.inject is not run_out_of_memory]
