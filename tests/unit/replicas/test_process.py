"""Worker processes: the reason of a loss from the exit status, the environment, and the watchdog."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from service.host import OomKills
from service.metric_labels import LossReason
from service.replicas import process
from service.replicas.process import TICK_S, Watchdog, describe_exit, environment, loss_reason


@pytest.mark.parametrize(
    ("status", "num_oom_kills", "reason", "words"),
    [
        (-signal.SIGKILL, 0, "killed", "killed by SIGKILL"),
        (-signal.SIGKILL, 1, "oom", "killed by the kernel, out of memory,"),
        (-signal.SIGHUP, 1, "killed", "killed by SIGHUP"),
        (-signal.SIGSEGV, 1, "crash", "killed by SIGSEGV"),
        (-signal.SIGABRT, 0, "crash", "killed by SIGABRT"),
        (3, 0, "exit", "exited with status 3"),
        (0, 0, "exit", "exited with status 0"),
    ],
)
def test_the_loss_reason_follows_the_exit_status(
    status: int, num_oom_kills: int, reason: LossReason, words: str
) -> None:
    counts = iter([4, 4 + num_oom_kills])
    assert loss_reason(status, OomKills(lambda: next(counts))) == reason
    assert describe_exit(status, reason) == words


def test_one_oom_kill_explains_one_loss() -> None:
    """A replica that is killed later by hand in the same control group did not run out of memory."""
    count = 4
    kills = OomKills(lambda: count)
    assert loss_reason(-signal.SIGKILL, kills) == "killed", "kills before the start of the replica do not count"
    count = 6
    reasons = [loss_reason(-signal.SIGKILL, kills) for _ in range(3)]
    assert reasons == ["oom", "oom", "killed"]


def test_the_environment_sets_threads_that_wait_busily_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    child = environment(threads=3)
    assert (child["OMP_NUM_THREADS"], child["MKL_NUM_THREADS"], child["OMP_WAIT_POLICY"]) == ("3", "3", "PASSIVE")
    assert 0 < int(child["GOMP_SPINCOUNT"]) < 300_000, "what GNU's OpenMP takes where it is left to itself"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert environment(threads=3)["GOMP_SPINCOUNT"] == "7"


def test_the_environment_limits_cached_kernels_unless_it_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        monkeypatch.delenv(name, raising=False)
        assert int(environment(threads=3)[name]) <= 256
        monkeypatch.setenv(name, "1024")
        assert environment(threads=3)[name] == "1024"


class FakeLoop:
    """An event loop whose timers run when the test advances the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], object]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[[], object]) -> None:
        self.timers.append((self.now + seconds, call))

    def run_until(self, end: float) -> None:
        while self.timers and self.timers[0][0] <= end:
            due, call = self.timers.pop(0)
            self.now = max(self.now, due)
            call()
        self.now = end


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> FakeLoop:
    fake = FakeLoop()
    monkeypatch.setattr(process.asyncio, "get_running_loop", lambda: fake)
    return fake


@pytest.mark.parametrize("seconds", [0.05, 0.5, 3.2])
def test_a_watchdog_calls_once_after_its_time(loop: FakeLoop, seconds: float) -> None:
    calls: list[float] = []
    Watchdog(seconds, lambda: calls.append(loop.now))
    loop.run_until(100.0)
    assert calls == [pytest.approx(seconds)]


def test_a_watchdog_does_not_count_time_while_the_process_is_suspended(loop: FakeLoop) -> None:
    calls: list[float] = []
    Watchdog(10.0, lambda: calls.append(loop.now))
    loop.run_until(4.0)
    loop.now = 1000.0  # suspended until then
    loop.run_until(1004.0)
    assert calls == []
    loop.run_until(1100.0)
    assert calls == [pytest.approx(1006.0, abs=2 * TICK_S)]


def test_the_environment_has_only_absolute_paths() -> None:
    """A worker process runs in another working directory."""
    assert all(path.startswith("/") for path in environment(threads=1)["PYTHONPATH"].split(":"))
