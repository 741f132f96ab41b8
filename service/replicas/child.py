"""The worker process: loads an engine per checkpoint on one device, then computes the batches that come down the pipe.

Started as `python -m service.replicas.child FD PARENT_PID IMPORTS`; it never outlives its parent. IMPORTS, a module or
nothing, is imported before the parent says what to load, as the parent may be busy until then. A thread reads the pipe
and prepares each batch while the one before computes: a GPU already has it then, a CPU finds it packed.
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
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import NoReturn, Protocol

from service import host
from service.checkpoints.checked_file import DamagedFile
from service.checkpoints.checkpoint import Checkpoint
from service.domain import Memory, Output
from service.errors import DeviceFailure, OutOfMemory, StartupError
from service.replicas.canary import Canary
from service.replicas.isolation import MemoryProbe, run_rows
from service.replicas.protocol import (
    Broken,
    Checked,
    CheckWeights,
    ComputeRequest,
    ComputeResponse,
    Damaged,
    Loading,
    Pipe,
    Profile,
    Ready,
    Spec,
    Stop,
    ToParent,
)
from service.replicas.runner import Progress, Runner

logger = logging.getLogger(__name__)
PR_SET_PDEATHSIG = 1

CHECK_EVERY_S = 3600.0
"""Between two checks of the cached weights in use: on a CPU they are mapped, and change with the file."""

CHECK_SHARE = 0.25
"""The share of the time in which a check works: 0.3 GB/s, and the cores stay free for requests. The thread has no lower
priority, because while it waits for a core it may hold the interpreter's lock, which batches need."""


def main(fd: int, parent_pid: int, imports: str) -> int:
    # The parent handles Ctrl-C and signals to the whole group: it drains first, then stops its worker processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _exit_with(parent_pid)
    os.set_inheritable(fd, False)
    pipe = Pipe(fd)
    if imports:
        with suppress(Exception):  # loading the models reports it
            import_module(imports)
    try:
        spec = pipe.recv()
    except EOFError:
        return 1  # the parent has ended before it had models
    assert isinstance(spec, Spec), "the first message is the spec"
    spec.set_up_logs()
    try:
        return _serve(pipe, spec)
    except (BrokenPipeError, ConnectionResetError):
        return 1  # the parent has gone
    except Exception:  # the outermost handler: the parent notices the exit and starts another
        logger.exception("replica failed", extra={"device": spec.device})
        return 1


def _exit_with(parent_pid: int) -> None:
    """Has the kernel kill this process when its parent exits, for whatever reason. macOS cannot: there the closed pipe
    ends it, once it has computed its batch."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it exited before the line above
        sys.exit(1)


def _serve(pipe: Pipe, spec: Spec) -> int:
    try:
        engines = load(spec, pipe.send)
        canary = Canary(engines, spec.canary_interval_s)
    except StartupError as error:
        pipe.send(Broken(error))
        return 1
    except Exception as error:  # any failure of loading: the parent reports it
        logger.exception("models could not be loaded", extra={"device": spec.device})
        pipe.send(Broken(StartupError(f"{spec.device}: loading failed: {type(error).__name__}: {error}")))
        return 1
    precisions = {name: engine.precision for name, engine in engines.items()}
    has_found_damage = any(engine.has_found_damage for engine in engines.values())
    memory_bytes = host.process_memory().allocated
    left_out = {name: tuple(check for check in engine.checks if not check.is_sound) for name, engine in engines.items()}
    pipe.send(Ready(precisions, memory_bytes, canary.answers, device_memory(engines), has_found_damage, left_out))
    gc.freeze()  # libraries and engines need not be scanned again by a collection during a batch
    batches: SimpleQueue[Prepared | None] = SimpleQueue()
    watch = WeightsWatch(engines, partial(batches.put, None))
    Thread(target=watch.run, daemon=True).start()
    Thread(target=_receive, args=(pipe, engines, watch, batches), daemon=True).start()
    work(engines, canary, watch, pipe, batches)
    if watch.damaged is not None:
        pipe.send(Damaged(watch.damaged))
        return 1
    return 0


def load(spec: Spec, send: Callable[[ToParent], None]) -> dict[str, Runner]:
    """Loads and warms up an engine per checkpoint; by model name."""
    engines = {}
    for checkpoint in spec.checkpoints:
        progress = _progress(checkpoint, send)
        engine = spec.load(checkpoint, device=spec.device, precision=spec.precision, progress=progress)
        if spec.are_weights_suspect:
            engine.replace_damaged_weights()
        engine.warm_up()
        engines[checkpoint.name] = engine
    return engines


def _progress(checkpoint: Checkpoint, send: Callable[[ToParent], None]) -> Progress:
    """Sends one message per percent: loaders may report every tensor."""
    last = -1

    def report(done: int, total: int) -> None:
        nonlocal last
        percent = 100 * done // max(1, total)
        if percent != last:
            last = percent
            send(Loading(checkpoint.name, done, total))

    return report


class WeightsWatch:
    """Checks the cached weights in use: in its thread, which `run` is for, and which ends when it has found damage."""

    def __init__(self, engines: Mapping[str, Runner], on_damage: Callable[[], None]) -> None:
        self.damaged: str | None = None
        """The model whose weights are damaged. None of its outputs may be sent."""
        self._engines = engines
        self._on_damage = on_damage
        self._is_wanted = Event()

    def check_soon(self) -> None:
        self._is_wanted.set()

    def run(self) -> None:
        """The first check is at once: the content of large files was not checked before."""
        while self.check():
            self._is_wanted.wait(CHECK_EVERY_S)
            self._is_wanted.clear()
        self._on_damage()

    def check(self) -> bool:
        """Returns whether no damage was found."""
        for name, engine in self._engines.items():
            try:
                engine.require_sound_weights(CHECK_SHARE)
            except DamagedFile:  # logged by the engine
                self.damaged = name
                return False
            except OSError:  # for lack of memory: no reason not to serve
                logger.exception("weights could not be checked", extra={"model": name})
        return True


def _receive(
    pipe: Pipe, engines: Mapping[str, Runner], watch: WeightsWatch, batches: SimpleQueue[Prepared | None]
) -> None:
    try:
        while isinstance(message := pipe.recv(), ComputeRequest | CheckWeights):
            if isinstance(message, ComputeRequest):
                batches.put(prepare(engines, message))
            else:
                watch.check_soon()
        assert isinstance(message, Stop), "after loading there are batches, then the stop"
        batches.put(None)
    except (EOFError, OSError):
        os._exit(1)  # the parent has exited: the current batch is not wanted any more


class Sender(Protocol):
    """The writing side of the pipe."""

    def send(self, message: ToParent) -> None: ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch that the engine has prepared: on a GPU it is computing, on a CPU it is packed."""

    batch: ComputeRequest
    finish: Callable[[], list[Output]]
    started: float


def work(
    engines: Mapping[str, Runner],
    canary: Canary,
    watch: WeightsWatch,
    pipe: Sender,
    batches: SimpleQueue[Prepared | None],
) -> None:
    """Computes until Stop, or until weights are damaged; measures and runs the canary between batches and while there
    are none.

    Raises DeviceFailure in place of an answer when a batch broke the device: that batch is computed elsewhere.
    """
    measuring = measure_profiles(engines)
    while True:
        if canary.wait_s() == 0:
            check_canary(canary, engines, pipe)
        advance(measuring, pipe, batches)
        free_since = time.perf_counter()
        try:
            prepared = batches.get(timeout=canary.wait_s())
        except Empty:
            continue
        if prepared is None:
            return
        probe = MemoryProbe()
        result = compute(engines, prepared, probe, free_since)
        if probe.has_failed:
            check_canary(canary, engines, pipe)
        if watch.damaged is not None:
            return
        pipe.send(result)


def check_canary(canary: Canary, engines: Mapping[str, Runner], pipe: Sender) -> None:
    wrong = canary.wrong_model()
    pipe.send(Checked(wrong, device_memory(engines)))
    if wrong is not None:
        raise DeviceFailure(f"{wrong} answers differently than at the start")


def device_memory(engines: Mapping[str, Runner]) -> Memory:
    """Memory of the device that all engines are on."""
    return next(iter(engines.values())).device_memory() or host.process_memory()


def measure_profiles(engines: Mapping[str, Runner]) -> Iterator[Profile | None]:
    """Measures one forward per step; yields None while the profile of a model is not complete."""
    for name, engine in engines.items():
        steps = []
        fitting_tokens = None
        try:
            for step in engine.profile():
                steps.append(step)
                yield None
        except DeviceFailure:
            raise
        except OutOfMemory:
            fitting_tokens = max((step.tokens for step in steps), default=0)
        except Exception:  # an incomplete profile is no reason not to serve
            logger.exception("profile failed", extra={"model": name})
        yield Profile(name, tuple(steps), fitting_tokens)


def advance(measuring: Iterator[Profile | None], pipe: Sender, batches: SimpleQueue[Prepared | None]) -> None:
    """Measures one forward, and more while there is no batch. So the start does not wait for the profile, a request
    waits for one forward at most, and the profile is completed under steady load, too."""
    for profile in measuring:
        if profile:
            pipe.send(profile)
        if not batches.empty():
            break


def prepare(engines: Mapping[str, Runner], batch: ComputeRequest) -> Prepared:
    """Prepares a batch while the one before computes. An error is raised again when it is the turn of this batch."""
    started = time.perf_counter()
    try:
        finish = engines[batch.encodings[0].model].prepare(batch.encodings)
    except Exception as error:  # noqa: BLE001 - raised again when the batch is computed
        return Prepared(batch, partial(_raise, error), started)
    return Prepared(batch, finish, started)


def _raise(error: Exception) -> NoReturn:
    raise error


def compute(
    engines: Mapping[str, Runner], prepared: Prepared, probe: MemoryProbe, free_since: float
) -> ComputeResponse:
    batch = prepared.batch
    outputs = run_rows(engines[batch.encodings[0].model], batch.encodings, probe, prepared.finish)
    seconds = time.perf_counter() - max(prepared.started, free_since)
    return ComputeResponse(batch.number, outputs, seconds, probe.fitting_tokens)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
