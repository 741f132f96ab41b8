"""What a child does from batch to batch: compute, measure, and look after the canary. Prepared by one thread, done by
another.

Knows no process, no pipe but to write to, and no torch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import NoReturn, Protocol

from service import host
from service.domain import Memory, Output
from service.errors import Died, OutOfMemory
from service.replicas.canary import Canary
from service.replicas.loading import Runner
from service.replicas.messages import Batch, Checked, Profile, Result, ToParent
from service.replicas.rows import Seen, run_rows

logger = logging.getLogger(__name__)


class Sender(Protocol):
    """The pipe, to who only writes."""

    def send(self, message: ToParent) -> None: ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch that the engine has seen: what is left to do is to wait, or on a CPU to compute."""

    batch: Batch
    finish: Callable[[], list[Output]]
    started: float


def work(engines: Mapping[str, Runner], canary: Canary, pipe: Sender, batches: SimpleQueue[Prepared | None]) -> None:
    """Computes until the stop comes; between two batches, and while none comes, it measures and looks after the canary.

    Raises Died, in place of an answer where a batch led to it: that batch is computed elsewhere.
    """
    measuring = profiles(engines)
    while True:
        if canary.wait_s() == 0:
            check_canary(canary, engines, pipe)
        measure(measuring, pipe, batches)
        free_since = time.perf_counter()
        try:
            prepared = batches.get(timeout=canary.wait_s())
        except Empty:
            continue
        if prepared is None:
            return
        seen = Seen()
        result = compute(engines, prepared, seen, free_since)
        if seen.has_failed:
            check_canary(canary, engines, pipe)
        pipe.send(result)


def check_canary(canary: Canary, engines: Mapping[str, Runner], pipe: Sender) -> None:
    wrong = canary.wrong_model()
    pipe.send(Checked(wrong, device_memory(engines)))
    if wrong is not None:
        raise Died(f"{wrong} does not answer what it did")


def device_memory(engines: Mapping[str, Runner]) -> Memory:
    """All engines are on one device."""
    return next(iter(engines.values())).device_memory() or host.process_memory()


def profiles(engines: Mapping[str, Runner]) -> Iterator[Profile | None]:
    """Measures one forward at a time; None while a model's profile is not complete."""
    for name, engine in engines.items():
        steps = []
        fitting_tokens = None
        try:
            for step in engine.profile():
                steps.append(step)
                yield None
        except Died:
            raise
        except OutOfMemory:
            fitting_tokens = max((step.tokens for step in steps), default=0)
        except Exception:  # a batch too few was measured, which is no reason not to serve
            logger.exception("profile failed", extra={"model": name})
        yield Profile(name, tuple(steps), fitting_tokens)


def measure(measuring: Iterator[Profile | None], pipe: Sender, batches: SimpleQueue[Prepared | None]) -> None:
    """One forward, and more while there is no batch, until all are measured: a start need not wait for that, a request
    waits for one of them at most, and under steady load it ends, too."""
    for profile in measuring:
        if profile:
            pipe.send(profile)
        if not batches.empty():
            break


def prepare(engines: Mapping[str, Runner], batch: Batch) -> Prepared:
    """What can be done while the batch before computes. An error is raised again when it is this one's turn."""
    started = time.perf_counter()
    try:
        finish = engines[batch.encodings[0].model].prepare(batch.encodings)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is that of the forward
        return Prepared(batch, partial(_raise, error), started)
    return Prepared(batch, finish, started)


def _raise(error: Exception) -> NoReturn:
    raise error


def compute(engines: Mapping[str, Runner], prepared: Prepared, seen: Seen, free_since: float) -> Result:
    batch = prepared.batch
    outputs = run_rows(engines[batch.encodings[0].model], batch.encodings, seen, prepared.finish)
    seconds = time.perf_counter() - max(prepared.started, free_since)
    return Result(batch.number, outputs, seconds, seen.fitting_tokens)
