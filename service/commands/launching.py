"""What `serve` starts before it imports the server: worker processes, which import torch, and reading the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain, product
from pathlib import Path
from threading import Thread
from typing import get_args

from service import host
from service.checkpoints.checkpoint import source_files
from service.checkpoints.converted import files_to_read, form_of
from service.checkpoints.files import read_ahead
from service.commands.models import fetch_checkpoint, parse_specs
from service.domain import Quantization, Runtime
from service.errors import StartupError
from service.replicas.process import Launched, launch
from service.replicas.runner import ENGINE_MODULE
from service.settings import Replicas, Settings
from service.settings_sources import weight_cache_folder


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


def read_weights(settings: Settings) -> Thread:
    """Starts to read the weights that are on this machine into the page cache. What is wrong, loading them reports."""

    def read() -> None:
        with suppress(StartupError):
            read_ahead(list(chain.from_iterable(_files_of(settings))))

    thread = Thread(target=read, daemon=True, name="read-ahead")
    thread.start()
    return thread


def _files_of(settings: Settings) -> Iterator[Sequence[Path]]:
    """The files of each model that the workers will read."""
    wanted = settings.replicas
    device = devices_of(wanted)[0].partition(":")[0]
    precisions = ("bfloat16", "float32") if wanted.precision == "auto" else (wanted.precision,)
    quantizations = get_args(Quantization) if wanted.quantization == "auto" else (wanted.quantization,)
    runtimes = get_args(Runtime) if wanted.runtime == "auto" else (wanted.runtime,)
    forms = [form_of(device, *each) for each in product(precisions, quantizations, runtimes)]
    models = settings.models.model_copy(update={"offline": True})
    cache = weight_cache_folder(models.weight_cache_dir)
    for spec in parse_specs(models):
        with suppress(StartupError, OSError):
            checkpoint = fetch_checkpoint(spec, models)
            yield files_to_read(cache, checkpoint.origin, source_files(checkpoint), forms)
