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
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from threading import Thread

from service import host
from service.checkpoints.checkpoint import Checkpoint
from service.errors import StartupError
from service.replicas.canary import Canary
from service.replicas.loading import Progress, Runner
from service.replicas.messages import Batch, Broken, Loading, Ready, Spec, Stop, ToParent
from service.replicas.wire import Pipe
from service.replicas.work import Prepared, device_memory, prepare, work

logger = logging.getLogger(__name__)

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
