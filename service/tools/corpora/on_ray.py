"""Computes a job on a Ray cluster: Ray Data gives the parts to actors, each of which is the service on one device.

An actor reads the rows of its part, and writes the part, itself: the corpus and the output must be where every node
reaches them, and only the places of parts go through Ray. What an actor or a node that is lost had in work is found
missing among the parts, and given out again. A part that is computed twice is written twice, under one name.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from itertools import islice
from typing import Any, Final, TypeVar

from service.errors import StartupError
from service.host import install_command
from service.tools.corpora.bulk_client import BulkClient, Interrupted
from service.tools.corpora.job import Counts, Job, Part, cut
from service.tools.corpora.source import Place
from service.tools.corpora.work import LANES, answer

T = TypeVar("T")

PARTS_PER_ROUND: Final = 10_000
"""Places that are given out at a time, so that the memory of a run does not depend on the size of the corpus."""
MAX_IDLE_ROUNDS: Final = 3
"""Rounds in a row in which no part was computed; then the run ends."""

OpenClient = Callable[["Device"], AbstractAsyncContextManager[BulkClient]]


@dataclass(frozen=True, slots=True)
class Device:
    """What an actor has: a GPU, or the threads of a node without one."""

    num_gpus: int
    num_threads: int


@dataclass(frozen=True, slots=True)
class Ray:
    """A cluster: its address, or `local` for one on this machine; and the rows of a part there."""

    address: str
    part_rows: int


def connect(cluster: Ray) -> Any:
    """The module ray, connected. Raises StartupError."""
    try:
        ray = import_module("ray")
        import_module("ray.data")
    except ImportError:
        raise StartupError(f"--ray needs the package ray: {install_command('-r requirements/ray.txt')}") from None
    try:
        own = {"include_dashboard": False} if cluster.address == "local" else {}  # it would listen on a port
        ray.init(address=cluster.address, logging_level=logging.WARNING, log_to_driver=False, **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise StartupError(f"--ray {cluster.address}: {error}") from None
    return ray


def find_devices(ray: Any) -> tuple[Device, int]:
    """What each actor of the cluster gets, and how many there are: one for each GPU, or else for each node."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    num_gpus = sum(int(each.get("GPU", 0)) for each in resources)
    if num_gpus:
        return Device(1, 0), num_gpus
    cpus = [int(each.get("CPU", 0)) for each in resources if each.get("CPU", 0) >= 1]
    if not cpus:
        raise StartupError("no node of the Ray cluster has a CPU or a GPU for tasks")
    return Device(0, min(cpus)), sum(each // min(cpus) for each in cpus)


def compute(job: Job, cluster: Ray, open_client: OpenClient, on_size: Callable[[int], object]) -> Counts:
    """Computes the parts that are left. `open_client` is called in the actors: a module function, or a partial of one.

    Raises:
        StartupError: there is no cluster, an actor cannot start, or none of them gets on.
    """
    ray, counts, num_idle = connect(cluster), Counts(), 0
    try:
        while places := list(islice(places_of(job, cluster.part_rows), PARTS_PER_ROUND)):
            before = counts.answered + counts.failed
            for row in _run(ray, job, places, open_client):
                if row["refusal"]:
                    raise StartupError(row["refusal"])
                counts.add(Counts(row["answered"], row["failed"], row["tokens"]))
                on_size(row["size"])
            num_idle = 0 if counts.answered + counts.failed > before else num_idle + 1
            if num_idle == MAX_IDLE_ROUNDS:
                raise StartupError("no actor on Ray gets on; its dashboard has their logs; the same command goes on")
    except ray.exceptions.RayError as error:
        raise StartupError(f"Ray: {str(error).strip().splitlines()[-1]}") from None
    finally:
        ray.shutdown()
    return counts


def places_of(job: Job, part_rows: int) -> Iterator[dict[str, int]]:
    """Where the parts that are left begin, and how many rows they have."""
    for start, records in cut(job.opened, job.parts.done(), lambda: part_rows):
        yield {"row": start.row, "offset": start.offset, "num_rows": len(records)}


def _run(ray: Any, job: Job, places: list[dict[str, int]], open_client: OpenClient) -> Iterator[dict[str, Any]]:
    """One round. A lost actor is started again; its parts are left out, and the others go on."""
    context = ray.data.DataContext.get_current()
    context.max_errored_blocks, context.enable_progress_bars = -1, False
    device, num_actors = find_devices(ray)
    pool = ray.data.ActorPoolStrategy(
        min_size=1,
        max_size=num_actors,
        initial_size=num_actors,
        max_tasks_in_flight_per_actor=2 * LANES,
        max_concurrent_calls_per_actor=LANES,
        enable_true_multi_threading=True,
    )
    parts = ray.data.from_items(places, override_num_blocks=len(places)).map_batches(
        Engine,
        fn_constructor_args=(replace(job), open_client, device),
        compute=pool,
        batch_size=1,
        num_gpus=device.num_gpus or None,
        num_cpus=device.num_threads or 1,
        max_restarts=-1,
        max_task_retries=0,  # a task of an actor that finds no node again would wait for ever
    )
    yield from parts.iter_rows()


class Engine:
    """An actor: the service on one device, which computes a part in each call. Calls may overlap."""

    def __init__(self, job: Job, open_client: OpenClient, device: Device) -> None:
        self._job = job
        self._counts = Counts()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._service = open_client(device)
        self._client = self._wait(self._service.__aenter__())

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """`batch` has one place in its columns."""
        place = Place(int(batch["row"][0]), int(batch["offset"][0]))
        records = list(islice(self._job.opened.records(place), int(batch["num_rows"][0])))
        part, refusal = Part(self._job, place, records), ""
        try:
            self._wait(self._answer(part))
            part.commit()
            self._counts.add(part.counts)
        except StartupError as error:
            part.discard()
            refusal = error.detail
        found = {**asdict(part.counts), "size": part.size, "refusal": refusal}
        return {name: [value] for name, value in found.items()}

    async def _answer(self, part: Part) -> None:
        while True:
            try:
                return await answer(part, self._client, self._counts)
            except Interrupted as error:
                await asyncio.sleep(error.wait_s)
