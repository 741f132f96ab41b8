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
from itertools import count
from threading import Thread
from typing import TypeVar

from service.batching.run import Ran
from service.domain import Encoding
from service.errors import ReplicaLost, StartupError
from service.replicas.messages import Batch, Broken, Loading, Profile, Ready, Result, Spec, Stop, ToChild, ToParent
from service.replicas.wire import Frames, frame

logger = logging.getLogger(__name__)

T = TypeVar("T")
Progress = Callable[[Loading], None]
Profiled = Callable[[Profile], None]

KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "256"}
"""oneDNN keeps the code that it makes for a size of batch, and torch's layer above it does so once more: 1024 kernels
each, unless told otherwise, which are 0.9 MB each. These are enough for every length of one short text; packed batches
come in too many sizes for any number to help."""

LAST_WORDS_S = 5.0
"""From the end of the pipe to the end of the process."""


class Process(asyncio.Protocol):
    """One child, from its start to its end. Lives on one event loop; `start` first, `stop` last."""

    def __init__(
        self, spec: Spec, *, threads: int, hang_timeout_s: float, progress: Progress, profiled: Profiled
    ) -> None:
        self._spec = spec
        self._threads = threads
        self._hang_timeout_s = hang_timeout_s
        self._progress = progress
        self._profiled = profiled
        self._numbers = count()
        self._pending: dict[int, asyncio.Future[Ran]] = {}
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
                self._popen = self._spawn(theirs.fileno())
            except OSError as error:
                self._pipe.abort()
                raise StartupError(f"{self._spec.device}: no process could be started: {error.strerror}") from error
        self._has_ended.clear()
        self._send(self._spec)

    async def ready(self) -> Ready:
        """Waits until the models are loaded; StartupError (CheckpointError and so on) when they cannot be."""
        return await asyncio.shield(self._ready)

    async def run(self, encodings: Sequence[Encoding]) -> Ran:
        """Computes a batch of one model; ReplicaLost when the child ends before it has answered."""
        if self._has_ended.is_set():
            raise _lost()
        number = next(self._numbers)
        answer: asyncio.Future[Ran] = self._loop.create_future()
        self._pending[number] = answer
        if self._watchdog is None:
            self._rearm()
        try:
            self._send(Batch(number, encodings))
            return await answer
        finally:
            self._pending.pop(number, None)

    def on_end(self, call: Callable[[], object]) -> None:
        """Calls back in the moment in which the end is noticed, before any task can run a batch into the void."""
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

    def _spawn(self, fd: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "service.replicas.child", str(fd), str(os.getpid())]
        # A group of its own: a terminal's Ctrl-C is for the parent alone, even before the child can ignore it.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=(fd,), env=self._environment(), process_group=0
        )

    def _environment(self) -> dict[str, str]:
        """The parent's, but for what has to be set before the first import of a library that computes."""
        return {
            **KERNEL_CACHES,
            **os.environ,
            "OMP_NUM_THREADS": str(self._threads),
            "MKL_NUM_THREADS": str(self._threads),
            "OPENBLAS_NUM_THREADS": "1",
            # Threads that spin while they wait take the cores from those that compute.
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }

    # the pipe

    def _send(self, message: ToChild) -> None:
        if not self._pipe.is_closing():  # else its end is noticed, and told to those who wait
            self._pipe.write(frame(message))

    def data_received(self, data: bytes) -> None:
        for message in self._frames.feed(data):
            self._receive(message)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._has_ended.is_set():
            Thread(target=self._bury, daemon=True, name="replica-end").start()

    def _bury(self) -> None:
        """Whoever closes its pipe has ended, or is about to, or is made to."""
        try:
            self._popen.wait(LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        try:
            self._loop.call_soon_threadsafe(self._on_end)
        except RuntimeError:
            logger.debug("replica outlived the event loop")

    def _receive(self, message: ToParent) -> None:
        match message:
            case Loading():
                self._progress(message)
            case Profile():
                self._profiled(message)
            case Ready():
                _settle(self._ready, message)
            case Broken(error):
                _settle(self._ready, error)
            case Result(number, outputs, compute_s):
                if answer := self._pending.pop(number, None):
                    _settle(answer, Ran(outputs, compute_s))
                self._rearm()

    def _on_end(self) -> None:
        self._has_ended.set()
        self._rearm(False)
        _settle(self._ready, StartupError(f"{self._spec.device}: {_epitaph(self._popen.returncode)} while loading"))
        self._ready.exception()  # whoever waited for it may have gone: asyncio need not complain
        for answer in self._pending.values():
            _settle(answer, _lost())
            answer.exception()
        for call in self._calls_on_end:
            call()

    def _rearm(self, is_wanted: bool = True) -> None:
        """The clock of the batch at hand begins anew; the one behind it does not compute yet."""
        if self._watchdog:
            self._watchdog.cancel()
            self._watchdog = None
        if is_wanted and self._pending:
            self._watchdog = self._loop.call_later(self._hang_timeout_s, self._on_hang)

    def _on_hang(self) -> None:
        self._watchdog = None
        if self._pending:
            logger.error("replica hangs", extra={"device": self._spec.device, "seconds": self._hang_timeout_s})
            self.kill()


def _settle(future: asyncio.Future[T], result: T | Exception) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


def _lost() -> ReplicaLost:
    return ReplicaLost("the replica ended before it had answered")


def _epitaph(status: int) -> str:
    if status == -signal.SIGKILL:
        return "killed by SIGKILL (out of memory?)"
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
