"""The parent's end of one child process: start it, hear of its loading, hand it batches, notice its end.

Knows no engine and no restart. The event loop reads and writes the pipe itself, and never waits for it: what the child
does not take yet lies in the transport's buffer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from threading import Thread
from typing import TypeVar

from service.batching.batch import BatchNotStarted, BatchResult
from service.domain import Encoding
from service.errors import ReplicaLost, StartupError
from service.host import OomKills
from service.metric_labels import LossReason
from service.replicas.protocol import (
    Batch,
    Broken,
    Checked,
    Frames,
    Loading,
    Profile,
    Ready,
    Result,
    Spec,
    Stop,
    ToChild,
    ToParent,
    frame,
)

_OWN_SIGNALS = {
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGSEGV,
    signal.SIGSYS,
    signal.SIGTRAP,
}
"""A process that does what it must not gets these; the others come from outside."""


def reason_of(status: int, oom_kills: OomKills) -> LossReason:
    if status >= 0:
        return "exit"
    if -status in _OWN_SIGNALS:
        return "crash"
    return "oom" if status == -signal.SIGKILL and oom_kills.take() else "killed"


def describe_exit(status: int, reason: LossReason) -> str:
    if reason == "oom":
        return "killed by the kernel, out of memory,"
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "256"}
"""oneDNN keeps the code that it makes for a size of batch, and torch's layer above it does so once more: 1024 kernels
each, unless told otherwise, which are 0.9 MB each. These are enough for every length of one short text; packed batches
come in too many sizes for any number to help."""


def spawn(fd: int, threads: int) -> subprocess.Popen[bytes]:
    """A child that talks through the socket `fd`; it dies with the thread that calls this."""
    command = [sys.executable, "-m", "service.replicas.child", str(fd), str(os.getpid())]
    # A group of its own: a terminal's Ctrl-C is for the parent alone, even before the child can ignore it.
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, pass_fds=(fd,), env=environment(threads), process_group=0
    )


def environment(threads: int) -> dict[str, str]:
    """The parent's, but for what has to be set before the first import of a library that computes."""
    return {
        **KERNEL_CACHES,
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",
        # Threads that spin while they wait take the cores from those that compute.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }


logger = logging.getLogger(__name__)

T = TypeVar("T")
OnMessage = Callable[[Loading | Profile | Checked], None]
Patience = Callable[[Sequence[Encoding]], float]
"""Seconds that a batch may take."""

GONE = "the replica ended before it had answered"

EXIT_TIMEOUT_S = 5.0
"""From the end of the pipe to the end of the process."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """A batch in the pipe or at hand."""

    answer: asyncio.Future[BatchResult]
    patience_s: float


class Process(asyncio.Protocol):
    """One child, from its start to its end. Lives on one event loop; `start` first, `stop` last.

    `loss` tells why it ended, once it has. What it says beside its answers is `told`.
    """

    def __init__(self, spec: Spec, *, threads: int, patience: Patience, told: OnMessage, oom_kills: OomKills) -> None:
        self.loss: LossReason | None = None
        self._spec = spec
        self._threads = threads
        self._patience = patience
        self._told = told
        self._oom_kills = oom_kills
        self._numbers = count()
        self._pending: dict[int, _Sent] = {}  # in the order of sending: the first is at hand
        self._watchdog: asyncio.TimerHandle | None = None
        self._frames = Frames()
        self._has_ended = asyncio.Event()
        self._has_ended.set()  # a child that was never started
        self._calls_on_end: list[Callable[[], object]] = []

    @property
    def pid(self) -> int:
        return self._popen.pid

    async def start(self) -> None:
        """Starts the child. It dies with the thread that calls this: the event loop's."""
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[Ready] = self._loop.create_future()
        ours, theirs = socket.socketpair()
        with theirs:
            self._pipe, _ = await self._loop.create_unix_connection(lambda: self, sock=ours)
            try:
                self._popen = spawn(theirs.fileno(), self._threads)
            except OSError as error:
                self._pipe.abort()
                raise StartupError(f"{self._spec.device}: no process could be started: {error.strerror}") from error
        self._has_ended.clear()
        self._send(self._spec)

    async def ready(self) -> Ready:
        """Waits until the models are loaded; StartupError (CheckpointError and so on) when they cannot be."""
        return await asyncio.shield(self._ready)

    async def run(self, encodings: Sequence[Encoding]) -> BatchResult:
        """Computes a batch of one model; ReplicaLost when the child ends with it at hand, Untouched when it only waited
        for its turn."""
        if self._has_ended.is_set():
            raise BatchNotStarted(GONE)
        number = next(self._numbers)
        answer: asyncio.Future[BatchResult] = self._loop.create_future()
        self._pending[number] = _Sent(answer, self._patience(encodings))
        if self._watchdog is None:
            self._rearm()
        try:
            self._send(Batch(number, encodings))
            return await answer
        except asyncio.CancelledError:
            if self._has_ended.is_set():
                return answer.result()  # it is by `on_end` that we are cancelled, and the answer says more
            raise
        finally:
            self._pending.pop(number, None)

    def on_end(self, call: Callable[[], object]) -> None:
        """Calls back in the moment in which the end is noticed, before anybody can run another batch into the void."""
        self._calls_on_end.append(call)

    async def ended(self) -> int:
        """Waits for the child's end; its exit status, negative for a signal."""
        await self._has_ended.wait()
        return int(self._popen.returncode)

    def kill(self) -> None:
        self._popen.kill()

    async def stop(self, grace_s: float) -> None:
        """Lets the child finish its batch, for so long; nothing of it is left afterwards."""
        if not self._has_ended.is_set():
            self._send(Stop())
        try:
            async with asyncio.timeout(grace_s):
                await self._has_ended.wait()
        except TimeoutError:
            self.kill()
            await self._has_ended.wait()

    # the pipe

    def _send(self, message: ToChild) -> None:
        if not self._pipe.is_closing():  # else its end is noticed, and told to those who wait
            self._pipe.write(frame(message))

    def data_received(self, data: bytes) -> None:
        for message in self._frames.feed(data):
            self._receive(message)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._has_ended.is_set():
            Thread(target=self._reap, daemon=True, name="replica-end").start()

    def _reap(self) -> None:
        """Whoever closes its pipe has ended, or is about to, or is made to."""
        try:
            self._popen.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        try:
            self._loop.call_soon_threadsafe(self._on_end)
        except RuntimeError:
            logger.debug("replica outlived the event loop")

    def _receive(self, message: ToParent) -> None:
        match message:
            case Loading() | Profile():
                self._told(message)
            case Checked():
                self.loss = "wrong" if message.wrong else self.loss
                self._told(message)
            case Ready():
                _settle(self._ready, message)
            case Broken(error):
                _settle(self._ready, error)
            case Result():
                if sent := self._pending.pop(message.number, None):
                    _settle(sent.answer, BatchResult(message.outputs, message.compute_s, message.fitting_tokens))
                self._rearm()

    def _on_end(self) -> None:
        status = int(self._popen.returncode)
        self.loss = self.loss or reason_of(status, self._oom_kills)
        self._has_ended.set()
        self._rearm(False)
        _settle(self._ready, StartupError(f"{self._spec.device}: {describe_exit(status, self.loss)} while loading"))
        self._ready.exception()  # whoever waited for it may have gone: asyncio need not complain
        for place, sent in enumerate(self._pending.values()):
            _settle(sent.answer, BatchNotStarted(GONE) if place else ReplicaLost(GONE))
            sent.answer.exception()
        for call in self._calls_on_end:
            call()

    def _rearm(self, is_wanted: bool = True) -> None:
        """The clock of the batch at hand begins anew; the one behind it does not compute yet."""
        if self._watchdog:
            self._watchdog.cancel()
            self._watchdog = None
        if is_wanted and self._pending:
            patience_s = next(iter(self._pending.values())).patience_s
            self._watchdog = self._loop.call_later(patience_s, self._on_hang, patience_s)

    def _on_hang(self, patience_s: float) -> None:
        self._watchdog = None
        if self._pending:
            logger.error("replica hangs", extra={"device": self._spec.device, "seconds": patience_s})
            self.loss = "hang"
            self.kill()


def _settle(future: asyncio.Future[T], result: T | Exception) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
