"""The parent's end of one worker process: starts it, sends it batches, watches for hangs, and notices its exit.

The event loop reads and writes the pipe itself and never waits for it: bytes that the process does not read yet stay in
the transport's buffer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TypeVar

from service import host
from service.batching.batch import Batch, BatchNotStarted, BatchResult
from service.errors import ReplicaLost, StartupError
from service.host import OomKills
from service.metric_labels import LossReason
from service.replicas.protocol import (
    Broken,
    Checked,
    CheckWeights,
    ComputeRequest,
    ComputeResponse,
    Damaged,
    Frames,
    Loading,
    Profile,
    Ready,
    Spec,
    Stop,
    ToChild,
    ToParent,
    frame,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")
OnMessage = Callable[[Loading | Profile | Checked | Damaged], None]
BatchTimeout = Callable[[float | None], float]
"""From the predicted seconds of a batch (None: not measured) to the seconds that it may take."""

GONE = "the replica ended before it had answered"

EXIT_TIMEOUT_S = 5.0
"""From the end of the pipe to the exit of the process."""

REAP_EVERY_S = 0.01
"""Between two looks whether the process has exited. A thread that waits would be one more thing that may be refused."""

TICK_S = 0.5
"""Between two ticks of a watchdog; a tick that comes later than twice this counts as twice this."""

KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "256"}
"""oneDNN caches the kernel that it generates for each batch size, and torch's layer above it caches it again: 1024 of
0.9 MB each by default. 256 are enough for every length of one short text; packed batches come in too many sizes for any
number to help."""

_OWN_SIGNALS = {
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGSEGV,
    signal.SIGSYS,
    signal.SIGTRAP,
}
"""A process gets these for what it did itself; other signals come from outside."""


_SEARCH_PATH = [os.path.abspath(path) for path in sys.path if path]  # noqa: PTH100 - resolves no links
"""Absolute, as a worker process has another working directory."""


def loss_reason(status: int, oom_kills: OomKills) -> LossReason:
    if status >= 0:
        return "exit"
    if -status in _OWN_SIGNALS:
        return "crash"
    return "oom" if status == -signal.SIGKILL and oom_kills.take() else "killed"


def describe_exit(status: int, reason: LossReason) -> str:
    if reason == "oom":
        return "killed by the kernel, out of memory,"
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"


@dataclass(frozen=True, slots=True)
class Launched:
    """A worker process that waits for its spec, and our end of its pipe."""

    process: subprocess.Popen[bytes]
    pipe: socket.socket
    since: float = field(default_factory=time.monotonic)

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.since

    def discard(self) -> None:
        """Ends the process if it has not ended."""
        self.pipe.close()
        self.process.kill()
        self.process.wait()


def launch(threads: int, imports: str = "") -> Launched:
    """Starts a worker process; it is killed when the calling thread ends. It imports the module `imports` while it
    waits for its spec. An OSError leaves nothing behind."""
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            return Launched(spawn(theirs.fileno(), threads, imports), ours)
        except OSError:
            ours.close()
            raise


def spawn(fd: int, threads: int, imports: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "service.replicas.child", str(fd), str(os.getpid()), imports]
    # A process group of its own: a terminal's Ctrl-C reaches the parent alone, even before the child can ignore it.
    # The root as working directory: the parent's own may be deleted while it runs.
    return subprocess.Popen(
        command, cwd="/", stdin=subprocess.DEVNULL, pass_fds=(fd,), env=environment(threads), process_group=0
    )


def environment(threads: int) -> dict[str, str]:
    """The parent's environment, and what must be set before the first import of a library that computes."""
    return {
        **KERNEL_CACHES,
        **host.thread_variables(threads),
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(_SEARCH_PATH),
    }


class Watchdog:
    """Calls `on_timeout` once after `seconds` in which this process was running.

    Time in which it was suspended does not count: a container that was frozen was frozen as a whole, so its worker
    processes did not compute either.
    """

    def __init__(self, seconds: float, on_timeout: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._left_s = seconds
        self._on_timeout = on_timeout
        self._last_tick = self._loop.time()
        self._timer = self._loop.call_later(min(TICK_S, seconds), self._tick)

    def cancel(self) -> None:
        self._timer.cancel()

    def _tick(self) -> None:
        now = self._loop.time()
        self._left_s -= min(now - self._last_tick, 2 * TICK_S)
        self._last_tick = now
        if self._left_s > 0:
            self._timer = self._loop.call_later(min(TICK_S, self._left_s), self._tick)
        else:
            self._on_timeout()


@dataclass(frozen=True, slots=True)
class _SentBatch:
    """A batch in the pipe or being computed."""

    answer: asyncio.Future[BatchResult]
    timeout_s: float


class WorkerProcess(asyncio.Protocol):
    """One worker process, from its start to its exit. Lives on one event loop; `start` first, `stop` last.

    It is the `Replica` that the batcher feeds. `loss` is why it exited, once it has. `on_message` is called with its
    messages other than answers. With `launched` that process is used, else `start` launches one.
    """

    def __init__(
        self,
        name: str,
        spec: Spec,
        *,
        threads: int,
        batch_timeout_s: BatchTimeout,
        on_message: OnMessage,
        oom_kills: OomKills,
        launched: Launched | None = None,
    ) -> None:
        self.name = name
        self.loss: LossReason | None = None
        self._launched = launched
        self._spec = spec
        self._threads = threads
        self._batch_timeout_s = batch_timeout_s
        self._on_message = on_message
        self._oom_kills = oom_kills
        self._numbers = count()
        self._pending: dict[int, _SentBatch] = {}  # in the order of sending: the first is being computed
        self._watchdog: Watchdog | None = None
        self._frames = Frames()
        self._has_exited = asyncio.Event()
        self._has_exited.set()  # until it is started
        self._calls_on_exit: list[Callable[[], object]] = []

    @property
    def pid(self) -> int:
        return self._popen.pid

    async def start(self) -> None:
        """Starts the process. It is killed when the calling thread, the event loop's, ends."""
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[Ready] = self._loop.create_future()
        try:
            await self._open()
        except OSError as error:
            detail = f"{self._spec.device}: no process could be started: {error.strerror}"
            raise StartupError(detail) from error
        self._send(self._spec)

    async def _open(self) -> None:
        """Connects the event loop with a process. An OSError or a cancellation leaves neither."""
        launched = self._launched or launch(self._threads)
        self._popen = launched.process
        self._has_exited.clear()  # before the connection, which may be lost at once
        try:
            self._pipe, _ = await self._loop.create_unix_connection(lambda: self, sock=launched.pipe)
        except BaseException:
            launched.discard()
            self._has_exited.set()
            raise

    async def ready(self, timeout_s: float) -> Ready:
        """Waits until the models are loaded. StartupError (CheckpointError and so on) when they cannot be, or are not
        within `timeout_s`."""
        watchdog = Watchdog(timeout_s, partial(self._on_late_start, timeout_s))
        try:
            return await asyncio.shield(self._ready)
        finally:
            watchdog.cancel()

    async def run(self, batch: Batch) -> BatchResult:
        """Computes a batch. ReplicaLost when the process exits while it computes the batch, BatchNotStarted when it
        exits before."""
        if self._has_exited.is_set():
            raise BatchNotStarted(GONE)
        number = next(self._numbers)
        answer: asyncio.Future[BatchResult] = self._loop.create_future()
        self._pending[number] = _SentBatch(answer, self._batch_timeout_s(batch.expected_s))
        if self._watchdog is None:
            self._rearm()
        try:
            self._send(ComputeRequest(number, batch.encodings))
            return await answer
        except asyncio.CancelledError:
            if self._has_exited.is_set():
                return answer.result()  # an `on_exit` call has cancelled us; the answer says what became of the batch
            raise
        finally:
            self._pending.pop(number, None)

    def on_exit(self, call: Callable[[], object]) -> None:
        """Registers a call for the moment in which the exit is noticed, before another batch can be sent."""
        self._calls_on_exit.append(call)

    async def wait(self) -> int:
        """Waits for the exit; returns the exit status, negative for a signal."""
        await self._has_exited.wait()
        return int(self._popen.returncode)

    def check_weights(self) -> None:
        """Has the process check the cached weights that it uses."""
        self._send(CheckWeights())

    def kill(self) -> None:
        self._popen.kill()

    async def stop(self, grace_s: float) -> None:
        """Lets the process finish its batch, for at most `grace_s`, and waits for its exit."""
        if not self._has_exited.is_set():
            self._send(Stop())
        try:
            async with asyncio.timeout(grace_s):
                await self._has_exited.wait()
        except TimeoutError:
            self.kill()
            await self._has_exited.wait()

    # the pipe

    def _send(self, message: ToChild) -> None:
        if not self._pipe.is_closing():  # else the exit is about to be noticed, and fails what waits
            self._pipe.write(frame(message))

    def data_received(self, data: bytes) -> None:
        for message in self._frames.feed(data):
            self._receive(message)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._has_exited.is_set():
            self._reap(self._loop.time() + EXIT_TIMEOUT_S)

    def _reap(self, deadline: float) -> None:
        """A closed pipe means that the process has exited, or is exiting, or is killed here."""
        if self._popen.poll() is not None:
            self._exited()
            return
        if self._loop.time() > deadline:
            self._popen.kill()
        self._loop.call_later(REAP_EVERY_S, self._reap, deadline)

    def _receive(self, message: ToParent) -> None:
        match message:
            case Loading() | Profile():
                self._on_message(message)
            case Checked():
                self.loss = "wrong" if message.wrong else self.loss
                self._on_message(message)
            case Damaged():
                self.loss = "wrong"
                self._on_message(message)
            case Ready():
                _settle(self._ready, message)
            case Broken(error):
                _settle(self._ready, error)
            case ComputeResponse():
                if sent := self._pending.pop(message.number, None):
                    _settle(sent.answer, BatchResult(message.outputs, message.compute_s, message.fitting_tokens))
                self._rearm()

    def _exited(self) -> None:
        status = int(self._popen.returncode)
        self.loss = self.loss or loss_reason(status, self._oom_kills)
        self._has_exited.set()
        self._rearm(False)
        _settle(self._ready, StartupError(f"{self._spec.device}: {describe_exit(status, self.loss)} while loading"))
        self._ready.exception()  # marks it as seen: nothing may wait for it any more
        for place, sent in enumerate(self._pending.values()):
            _settle(sent.answer, BatchNotStarted(GONE) if place else ReplicaLost(GONE))
            sent.answer.exception()
        for call in self._calls_on_exit:
            call()

    def _rearm(self, is_wanted: bool = True) -> None:
        """Restarts the clock for the batch that is being computed; the one behind it does not compute yet."""
        if self._watchdog:
            self._watchdog.cancel()
            self._watchdog = None
        if is_wanted and self._pending:
            timeout_s = next(iter(self._pending.values())).timeout_s
            self._watchdog = Watchdog(timeout_s, partial(self._on_hang, timeout_s))

    def _on_late_start(self, timeout_s: float) -> None:
        _settle(self._ready, StartupError(f"{self._spec.device}: not ready after {timeout_s:g} s"))
        self.kill()

    def _on_hang(self, timeout_s: float) -> None:
        self._watchdog = None
        if self._pending:
            logger.error("replica hangs", extra={"device": self._spec.device, "seconds": timeout_s})
            self.loss = "hang"
            self.kill()


def _settle(future: asyncio.Future[T], result: T | Exception) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
