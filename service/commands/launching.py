"""Worker processes that are started before there is anything to load: they import torch while the parent imports."""

from __future__ import annotations

from contextlib import suppress

from service import host
from service.replicas.process import Launched, launch
from service.replicas.runner import ENGINE_MODULE
from service.settings import Replicas, Settings


def devices_of(replicas: Replicas) -> tuple[str, ...]:
    return host.resolve_devices(replicas.devices)


def threads_of(replicas: Replicas, num_devices: int) -> int:
    """Of each replica: the cores are divided among them."""
    return replicas.threads or max(1, host.num_cores() // num_devices)


def launch_workers(settings: Settings) -> list[Launched]:
    """One for each replica, or fewer where the system allows no more: a replica starts its own then, and reports why it
    could not."""
    num_devices = len(devices_of(settings.replicas))
    threads = threads_of(settings.replicas, num_devices)
    workers: list[Launched] = []
    with suppress(OSError):
        workers.extend(launch(threads, imports=ENGINE_MODULE) for _ in range(num_devices))
    return workers
