"""FairThreads: who computes next, turns between slices, cancellation, deadlines, and a system without threads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.batching import fair_threads
from service.batching.fair_threads import MAX_STARTED, FairThreads
from service.domain import DEFAULT_OPTIONS, RequestOptions
from service.errors import DeadlineExceeded, Unavailable
from service.slices import between_slices

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def every_slice_is_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_threads, "TURN_S", 0.0)


class Gate:
    """A computation that waits to be let through before each of its slices, and records them."""

    def __init__(self, name: str, num_slices: int, record: list[str]) -> None:
        self._name, self._num_slices, self._record = name, num_slices, record
        self._permits = threading.Semaphore(0)
        self.is_running = threading.Event()

    def open(self) -> None:
        for _ in range(self._num_slices):
            self._permits.release()

    def __call__(self) -> str:
        for _ in range(self._num_slices):
            self.is_running.set()
            assert self._permits.acquire(timeout=30)
            self._record.append(self._name)
            between_slices()
        return self._name


def options(account: str, weight: float = 1.0, priority: int = 0) -> RequestOptions:
    return RequestOptions(None, priority, account, weight)


async def started(call: Gate) -> None:
    await asyncio.to_thread(call.is_running.wait, 30)


async def run_behind(
    threads: FairThreads, record: list[str], *waiting: tuple[RequestOptions, Callable[[], object]]
) -> None:
    """Runs the calls once all of them wait behind another one."""
    first = Gate("first", 1, record)
    tasks = [asyncio.create_task(threads.run(options("first"), first))]
    await started(first)
    tasks += [asyncio.create_task(threads.run(each, call)) for each, call in waiting]
    await asyncio.sleep(0)
    first.open()
    await asyncio.gather(*tasks)


async def test_result_and_exception_reach_the_caller() -> None:
    with FairThreads(1) as threads:
        assert await threads.run(DEFAULT_OPTIONS, lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            await threads.run(DEFAULT_OPTIONS, lambda: 1 / 0)
        assert await threads.run(DEFAULT_OPTIONS, lambda: 8) == 8


async def test_higher_priority_goes_first() -> None:
    record: list[str] = []
    with FairThreads(1) as threads:
        await run_behind(
            threads,
            record,
            (options("a", priority=-1), lambda: record.append("bulk")),
            (options("b"), lambda: record.append("interactive")),
        )
    assert record == ["first", "interactive", "bulk"]


async def test_long_computation_gives_way_to_another_account() -> None:
    record: list[str] = []
    with FairThreads(1) as threads:
        long = Gate("long", 3, record)
        running = asyncio.create_task(threads.run(options("bulk", weight=0.1), long))
        await started(long)
        short = asyncio.create_task(threads.run(options("good", weight=10.0), lambda: record.append("short")))
        await asyncio.sleep(0)
        long.open()
        await asyncio.gather(running, short)
    assert record == ["long", "short", "long", "long"]


async def test_computations_of_one_account_take_turns() -> None:
    record: list[str] = []
    with FairThreads(1) as threads:
        calls = [Gate(name, 2, record) for name in ("a", "b")]
        [call.open() for call in calls]
        await run_behind(threads, record, *((options("one"), call) for call in calls))
    assert record == ["first", "a", "b", "a", "b"]


async def test_an_account_holds_a_limited_number_of_threads() -> None:
    record: list[str] = []
    with FairThreads(1) as threads:
        calls = [Gate(str(number), 2, record) for number in range(MAX_STARTED + 1)]
        [call.open() for call in calls]
        await run_behind(threads, record, *((options("one"), call) for call in calls))
    started_first = [str(number) for number in range(MAX_STARTED)]
    assert record == ["first", *started_first, *started_first, str(MAX_STARTED), str(MAX_STARTED)]


async def test_cancelled_computation_ends_at_its_next_slice() -> None:
    record: list[str] = []
    with FairThreads(1) as threads:
        call = Gate("cancelled", 5, record)
        running = asyncio.create_task(threads.run(DEFAULT_OPTIONS, call))
        await started(call)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        call.open()
        assert await threads.run(DEFAULT_OPTIONS, lambda: "next") == "next"
    assert record == ["cancelled"]


async def test_cancelled_waiting_computation_never_starts() -> None:
    record: list[str] = []
    with FairThreads(1) as threads:
        first = Gate("first", 1, record)
        running = asyncio.create_task(threads.run(DEFAULT_OPTIONS, first))
        await started(first)
        waiting = asyncio.create_task(threads.run(DEFAULT_OPTIONS, lambda: record.append("cancelled")))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        first.open()
        await running
        await threads.run(DEFAULT_OPTIONS, lambda: record.append("next"))
    assert record == ["first", "next"]


async def test_cancelled_paused_computation_frees_its_thread() -> None:
    record: list[str] = []
    with FairThreads(1) as threads:
        paused, other = Gate("paused", 2, record), Gate("other", 1, record)
        paused_task = asyncio.create_task(threads.run(options("a"), paused))
        await started(paused)
        other_task = asyncio.create_task(threads.run(options("b"), other))
        await asyncio.sleep(0)
        paused.open()
        await started(other)
        paused_task.cancel()
        await asyncio.gather(paused_task, return_exceptions=True)
        other.open()
        await other_task
        assert await threads.run(options("a"), lambda: "next") == "next"
    assert record == ["paused", "other"]


async def test_deadline_ends_the_wait_and_the_computation() -> None:
    record: list[str] = []
    with FairThreads(1) as threads:
        call = Gate("late", 2, record)
        with pytest.raises(DeadlineExceeded):
            await threads.run(RequestOptions(time.monotonic() + 0.01), call)
        call.open()
        assert await threads.run(DEFAULT_OPTIONS, lambda: "next") == "next"
    assert record in ([], ["late"])


async def test_without_a_thread_the_request_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    with FairThreads(1) as threads:
        with monkeypatch.context() as patch:
            patch.setattr(ThreadPoolExecutor, "submit", refuse)
            with pytest.raises(Unavailable):
                await threads.run(DEFAULT_OPTIONS, lambda: 1)
        assert await threads.run(DEFAULT_OPTIONS, lambda: 2) == 2


async def test_close_ends_paused_computations() -> None:
    record: list[str] = []
    threads = FairThreads(1)
    paused, other = Gate("paused", 2, record), Gate("other", 1, record)
    tasks = [asyncio.create_task(threads.run(options("a"), paused))]
    await started(paused)
    tasks.append(asyncio.create_task(threads.run(options("b"), other)))
    await asyncio.sleep(0)
    paused.open()
    await started(other)
    threads.close()
    other.open()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["Unavailable", "str"]
    assert record == ["paused", "other"]
