"""The child process: loads an engine per checkpoint on one device, then computes the batches that come down the pipe.

Knows no HTTP, no queue and no metrics. A thread reads the pipe all the time and shows the engine what comes: when this
batch is done a GPU has the next one already, a CPU finds it packed. Started as
`python -m service.replicas.child FD PARENT_PID`; it never outlives its parent.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NoReturn, Protocol

from service import host
from service.checkpoints.checkpoint import Checkpoint
from service.domain import Memory, Output
from service.errors import Died, OutOfMemory, StartupError
from service.replicas.canary import Canary
from service.replicas.isolation import MemoryProbe, run_rows
from service.replicas.protocol import (
    Batch,
    Broken,
    Checked,
    Loading,
    Pipe,
    Profile,
    Ready,
    Result,
    Spec,
    Stop,
    ToParent,
)
from service.replicas.runner import Progress, Runner

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
        seen = MemoryProbe()
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


def compute(engines: Mapping[str, Runner], prepared: Prepared, seen: MemoryProbe, free_since: float) -> Result:
    batch = prepared.batch
    outputs = run_rows(engines[batch.encodings[0].model], batch.encodings, seen, prepared.finish)
    seconds = time.perf_counter() - max(prepared.started, free_since)
    return Result(batch.number, outputs, seconds, seen.fitting_tokens)


PR_SET_PDEATHSIG = 1


def main(fd: int, parent_pid: int) -> int:
    # Ctrl-C and a signal to the whole service are the parent's to handle: it drains first, then ends its children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _die_with(parent_pid)
    os.set_inheritable(fd, False)
    pipe = Pipe(fd)
    spec = pipe.recv()
    assert isinstance(spec, Spec), "the first message is the spec"
    spec.set_up_logs()
    try:
        return _serve(pipe, spec)
    except (BrokenPipeError, ConnectionResetError):
        return 1  # the parent has gone
    except Exception:  # the process's edge: its parent notices the death and starts another
        logger.exception("replica failed", extra={"device": spec.device})
        return 1


def _die_with(parent_pid: int) -> None:
    """The kernel kills this process when its parent ends, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it ended before the line above
        sys.exit(1)


def _serve(pipe: Pipe, spec: Spec) -> int:
    try:
        engines = load(spec, pipe.send)
        canary = Canary(engines, spec.canary_interval_s)
    except StartupError as error:
        pipe.send(Broken(error))
        return 1
    except Exception as error:  # the edge of loading: whatever it is, the parent has to hear of it
        logger.exception("models could not be loaded", extra={"device": spec.device})
        pipe.send(Broken(StartupError(f"{spec.device}: loading failed: {type(error).__name__}: {error}")))
        return 1
    precisions = {name: engine.precision for name, engine in engines.items()}
    pipe.send(Ready(precisions, host.process_memory().allocated, canary.answers, device_memory(engines)))
    gc.freeze()  # the garbage collector need not look at libraries and engines again, amid a batch
    batches: SimpleQueue[Prepared | None] = SimpleQueue()
    Thread(target=_receive, args=(pipe, engines, batches), daemon=True).start()
    work(engines, canary, pipe, batches)
    return 0


def load(spec: Spec, send: Callable[[ToParent], None]) -> dict[str, Runner]:
    """An engine per checkpoint, warmed up, by model name."""
    engines = {}
    for checkpoint in spec.checkpoints:
        progress = _progress(checkpoint, send)
        engine = spec.load(checkpoint, device=spec.device, precision=spec.precision, progress=progress)
        engine.warm_up()
        engines[checkpoint.name] = engine
    return engines


def _progress(checkpoint: Checkpoint, send: Callable[[ToParent], None]) -> Progress:
    """One message per percent: loaders may report every tensor."""
    last = -1

    def report(done: int, total: int) -> None:
        nonlocal last
        percent = 100 * done // max(1, total)
        if percent != last:
            last = percent
            send(Loading(checkpoint.name, done, total))

    return report


def _receive(pipe: Pipe, engines: Mapping[str, Runner], batches: SimpleQueue[Prepared | None]) -> None:
    try:
        while isinstance(message := pipe.recv(), Batch):
            batches.put(prepare(engines, message))
        assert isinstance(message, Stop), "after loading there are batches, then the stop"
        batches.put(None)
    except (EOFError, OSError):
        os._exit(1)  # the parent has gone: nobody waits for the batch at hand


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
