"""Two instances behind a real proxy, and what is done to them while clients ask: restarted in turn, or killed.

Knows the instances as processes, and the service by the answers that its clients got.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from benchmarks.faults.clients import Clients, Question, RequestContext
from benchmarks.faults.proxies import proxying
from benchmarks.faults.running import START_S, Instance, running, until
from benchmarks.local_server import free_port

DRAIN_DELAY_S = 1.0
"""Longer than a proxy needs to notice that an instance is not ready any more."""

FLAGS = ("--drain-delay-s", str(DRAIN_DELAY_S), "--threads", "1", "--devices", "cpu")


@asynccontextmanager
async def under_load(clients: Clients) -> AsyncIterator[None]:
    """The clients ask all the time; when this is left, each has had its last answer."""
    is_over = asyncio.Event()
    asking = asyncio.create_task(clients.ask_until(is_over))
    try:
        yield
    finally:
        is_over.set()
        await asking


async def restart_in_turn(instances: Sequence[Instance]) -> None:
    """SIGTERM, wait for the end, start again, wait until the proxy sends requests; then the next."""
    for instance in instances:
        status = await asyncio.to_thread(instance.stop)
        assert status == 0, f"after SIGTERM the server ended with {status}"
        await asyncio.to_thread(instance.start)
        await until(partial(_is_asked, instance), START_S)


def _is_asked(instance: Instance) -> bool:
    return instance.metric("requests_total", code="200") > 0


async def kill_one(instances: Sequence[Instance]) -> None:
    """The whole server dies at once, and its replicas with it; something starts it again."""
    await asyncio.to_thread(instances[0].kill)
    await asyncio.to_thread(instances[0].start)


Step = Callable[[Sequence[Instance]], Awaitable[None]]
STEPS: Mapping[str, Step] = {"rolling restart": restart_in_turn, "kill -9 of one of two servers": kill_one}


async def behind(
    proxy: str, folder: Path, asked: Sequence[Question], num_clients: int, flags: Sequence[str] = ()
) -> dict[str, list[RequestContext]]:
    """What the clients got during each of the steps, by name. `folder` is there."""
    instances = [Instance(folder / f"instance{number}.log", (*FLAGS, *flags)) for number in (1, 2)]
    ports = [instance.port for instance in instances]
    during = {}
    with running(*instances), proxying(proxy, folder / proxy, free_port(), ports) as url:
        async with Clients(url, asked, num_clients) as clients:
            await clients.learn()
            for name, step in STEPS.items():
                async with under_load(clients):
                    await step(instances)
                during[name] = clients.taken()
    return during
