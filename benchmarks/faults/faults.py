"""The table of faults: a signal to a process, an order to an engine, or a request that breaks the forward."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.faults.cgroups import MemoryGroup, memory_group
from service.metric_labels import LossReason
from tests.support.clients import Clients, Question
from tests.support.engines import CRASH_TOKENS, POISON_TOKENS, Order, give, is_open
from tests.support.servers import ENGINE_SERVER, Server, running, until

OBEYED_S = 60.0
OOM_BYTES = 1 << 28
"""What a server may allocate beyond what it has, before the kernel kills one of its processes."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server under load."""

    server: Server
    orders: Path
    clients: Clients
    group: MemoryGroup | None


@dataclass(frozen=True, slots=True)
class Fault:
    """`losses` is the number of replicas that it costs, 0 with a reason: all. `reason` is the label in the metrics."""

    name: str
    what: str
    inject: Callable[[Target], Awaitable[None]]
    reason: LossReason | None = None
    losses: int = 0


async def signal_one(target: Target, number: signal.Signals) -> None:
    target.server.replicas()[0].send_signal(number)


async def kill_all(target: Target) -> None:
    for replica in target.server.replicas():
        replica.kill()


async def order(target: Target, what: Order) -> None:
    """Returns when a replica has taken it."""
    give(target.orders, what)
    await until(lambda: not is_open(target.orders, what), OBEYED_S)


async def ask_for(target: Target, num_tokens: int) -> None:
    """One more client sends a row on which the forward fails."""
    body = {"inputs": "好" * (num_tokens - 2)}  # and the two special tokens
    await target.clients.ask(Question("fault", "/v1/embed", json.dumps(body).encode()))


async def run_out_of_memory(target: Target) -> None:
    """A replica exceeds the memory cgroup of the server; the kernel kills the largest process in it."""
    assert target.group is not None, "where there is none, this is left out"
    lost = await asyncio.to_thread(target.server.metric, "replica_losses_total")
    target.group.allow(OOM_BYTES)
    give(target.orders, "eat")
    await until(lambda: target.server.metric("replica_losses_total") > lost, OBEYED_S)
    target.group.lift()


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
    Fault("crashing row", "one row that kills the process", partial(ask_for, num_tokens=CRASH_TOKENS), "killed", 2),
)


def possible(faults: Sequence[Fault], group: MemoryGroup | None) -> list[Fault]:
    """Those that can be injected on this machine."""
    return [fault for fault in faults if group is not None or fault.inject is not run_out_of_memory]


@asynccontextmanager
async def target(
    folder: Path, flags: Sequence[str], asked: Sequence[Question], num_clients: int, deadline_s: float = 30.0
) -> AsyncIterator[Target]:
    """A server with the faulty engine, and clients that are not sending yet. `folder` takes orders and log."""
    with memory_group() as group:
        on_spawn = group.add if group is not None else None
        server = Server(folder / "log", flags, (ENGINE_SERVER, f"faulty={folder}"), on_spawn=on_spawn)
        with running(server):
            async with Clients(server.url, asked, num_clients, deadline_s) as clients:
                yield Target(server, folder, clients, group)
