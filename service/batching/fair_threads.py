"""Threads for long computations off the event loop: tokenization, JSON, decoding.

A few computations run at a time, chosen by fair queueing (`fair_share`): by priority, then between accounts by weight,
of which each is charged the seconds that it computed. A computation that has run for TURN_S gives way between two of
its slices (`service.slices`) if another one is due, and computations of one account take turns. There, too, it ends
when its request was cancelled or its deadline has passed.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self, TypeVar

from service.batching.fair_share import FairShare, Flow, FlowEntry, QueuePosition
from service.batching.jobs import deadline_exceeded
from service.domain import RequestOptions
from service.errors import Unavailable
from service.slices import run_in_slices

T = TypeVar("T")

TURN_S = 0.02
MAX_STARTED = 4
"""Computations of one account at one priority that have started, paused ones included: each holds a thread."""
MAX_THREADS = 256
NO_THREAD_RETRY_S = 1.0


class _CancelledError(Exception):
    """Ends a computation whose result is no longer wanted."""


@dataclass(slots=True, eq=False)
class _Call:
    """A computation. While it is paused, its thread waits for `resumed`."""

    run: Callable[[], Any]
    options: RequestOptions
    entry: FlowEntry
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    resumed: threading.Event = field(default_factory=threading.Event)
    has_started: bool = False
    has_ended: bool = False
    is_cancelled: bool = False
    turn_began: float = 0.0

    def settle(self, result: Any, error: BaseException | None) -> None:
        with suppress(RuntimeError):  # the event loop is closed
            self.loop.call_soon_threadsafe(self._settle, result, error)

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class FairThreads:
    """At most `num_running` computations run at a time. `clock` is that of the deadlines."""

    def __init__(self, num_running: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._num_allowed = num_running
        self._clock = clock
        self._threads = ThreadPoolExecutor(MAX_THREADS, "worker")
        self._lock = threading.Lock()
        self._share = FairShare()
        self._waiting: dict[Flow, dict[_Call, None]] = {}
        self._num_started: Counter[Flow] = Counter()
        self._num_running = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def run(self, options: RequestOptions, call: Callable[[], T]) -> T:
        """The result of `call`, computed in a thread.

        Raises:
            DeadlineExceeded: the deadline of the options has passed; the computation is cancelled.
            Unavailable: the system has no thread for it.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            each = _Call(call, options, self._share.enter(options), loop, loop.create_future())
            self._wait(each)
            self._start_next()
        left_s = None if options.deadline is None else options.deadline - self._clock()
        try:
            async with asyncio.timeout(left_s):
                result: T = await each.future
                return result
        except TimeoutError:
            raise deadline_exceeded() from None
        finally:
            if not each.future.done() or each.future.cancelled():
                self._cancel(each)

    def close(self) -> None:
        """Cancels all computations, at their next slice."""
        with self._lock:
            for each in [call for calls in self._waiting.values() for call in calls]:
                self._drop(each)
        self._threads.shutdown(wait=False, cancel_futures=True)

    # with the lock held

    def _wait(self, call: _Call) -> None:
        call.entry.add(0)
        self._waiting.setdefault(call.entry.flow, {})[call] = None

    def _leave(self, call: _Call) -> None:
        flow = call.entry.flow
        del self._waiting[flow][call]
        if not self._waiting[flow]:
            del self._waiting[flow]

    def _drop(self, call: _Call) -> None:
        """Cancels a call that waits; one that is paused goes on to its end at once."""
        call.is_cancelled = True
        self._leave(call)
        call.entry.drop(0)
        if call.has_started:
            self._num_running += 1
            call.resumed.set()

    def _next(self) -> _Call | None:
        """The call that is due: of the flow that is due, the first one that has a thread or may have one."""
        due: tuple[tuple[int, float], _Call] | None = None
        for flow, calls in self._waiting.items():
            first = next((call for call in calls if call.has_started or self._may_start(flow)), None)
            if first is not None and (due is None or _rank(first) < due[0]):
                due = _rank(first), first
        return None if due is None else due[1]

    def _may_start(self, flow: Flow) -> bool:
        return self._num_started[flow] < MAX_STARTED and self._num_started.total() < MAX_THREADS

    def _start_next(self) -> None:
        while self._num_running < self._num_allowed and (call := self._next()):
            self._leave(call)
            self._share.take(QueuePosition(call.entry, 0.0), 0, in_order=True)
            self._num_running += 1
            call.turn_began = time.perf_counter()
            if call.has_started:
                call.resumed.set()
            else:
                self._start(call)

    def _start(self, call: _Call) -> None:
        call.has_started = True
        self._num_started[call.entry.flow] += 1
        try:
            self._threads.submit(self._compute, call)
        except RuntimeError:  # no thread can be started (but the executor may find one later), or the service stops
            self._end(call)
            call.settle(None, Unavailable("no thread is free for this request", retry_after_s=NO_THREAD_RETRY_S))

    def _charge(self, call: _Call) -> None:
        now = time.perf_counter()
        flow = call.entry.flow
        flow.start_tag += (now - call.turn_began) / flow.weight
        call.turn_began = now

    def _end(self, call: _Call) -> None:
        call.has_ended = True
        self._charge(call)
        self._num_running -= 1
        self._num_started[call.entry.flow] -= 1
        if not self._num_started[call.entry.flow]:
            del self._num_started[call.entry.flow]
        if not self._waiting and not self._num_started:
            self._share.forget()

    # in any thread

    def _cancel(self, call: _Call) -> None:
        with self._lock:
            call.is_cancelled = True
            if call in self._waiting.get(call.entry.flow, ()):
                self._drop(call)

    def _compute(self, call: _Call) -> None:
        if call.has_ended:
            return
        result: Any = None
        error: BaseException | None = None
        try:
            result = run_in_slices(call.run, partial(self._between_slices, call))
        except _CancelledError:  # received only by a request that waits while the service stops
            error = Unavailable("the service is stopping")
        except BaseException as raised:  # noqa: BLE001 - raised by the await
            error = raised
        with self._lock:
            self._end(call)
            self._start_next()
        call.settle(result, error)

    def _between_slices(self, call: _Call) -> None:
        if not call.is_cancelled and time.perf_counter() - call.turn_began >= TURN_S:
            self._give_way(call)
        if call.is_cancelled:
            raise _CancelledError

    def _give_way(self, call: _Call) -> None:
        """Pauses the call if another one is due."""
        with self._lock:
            self._charge(call)
            other = self._next()
            if other is None or _rank(other) > _rank(call):
                return
            self._num_running -= 1
            call.resumed.clear()
            call.entry = self._share.enter(call.options)
            self._wait(call)
            self._start_next()
        call.resumed.wait()


def _rank(call: _Call) -> tuple[int, float]:
    return -call.entry.priority, call.entry.flow.start_tag
