"""Faults of real worker processes: killed, stopped, crashed, out of memory, hung, or computing wrong answers.

Every request gets its answer or a clear error, and the reason of the loss is recorded.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from service.batching.latency_model import MIN_BATCH_TOKENS
from service.domain import Encoding
from service.errors import InferenceFailed, OutOfMemory, ReplicaLost, StartupError
from service.metric_labels import LossReason
from service.replicas.replica import RestartPolicy
from tests.fakes import (
    BREAK,
    EXIT,
    GATE,
    HUGE,
    KILL,
    NAN,
    POISON,
    SEGFAULT,
    SILENT_BREAK,
    load_and_stop_once,
    load_without_int8,
    load_wrong_after_first,
    row,
    value,
)
from tests.system.replicas import compose, running, without_back_off

pytestmark = [pytest.mark.anyio, pytest.mark.system]


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The loop that the service runs on."""
    return "asyncio", {"use_uvloop": True}


# lost


async def test_every_request_is_answered_when_a_replica_is_killed_under_load(tmp_path: Path) -> None:
    async with running(compose(tmp_path)) as service:
        answers: list[float] = []

        async def client(number: int) -> None:
            for turn in range(10):
                answer = await service.submit(1000 * number, turn)
                assert answer == 1000 * number + turn, "every request gets its own answer"
                answers.append(answer)
                if len(answers) == 60:
                    os.kill(service.pid, signal.SIGKILL)

        await asyncio.gather(*(client(number) for number in range(20)))
        assert len(answers) == 200
        assert service.pool.is_ready()
        assert service.metrics.states.count("ready") == 2
        assert service.metrics.states[2:4] == ["ready", "restarting"], "the replica is not ready while it restarts"
        assert value(service.metrics, "replica_restarts_total", replica="cpu") == 1
        assert service.losses() == {"killed": 1}
        assert value(service.metrics, "queue_jobs") == value(service.metrics, "batches_in_flight") == 0


@pytest.mark.parametrize(("order", "reason"), [(KILL, "killed"), (EXIT, "exit"), (SEGFAULT, "crash")])
async def test_a_crashing_row_fails_alone(
    tmp_path: Path, order: int, reason: LossReason, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(compose(tmp_path)) as service:
        answers = await service.submit_all(5, 6, order, 8)
        assert [isinstance(answer, ReplicaLost) for answer in answers] == [False, False, True, False]
        assert [answer for answer in answers if isinstance(answer, float)] == [5, 7, 11]
        assert service.losses() == {reason: 2}
        lost = [record.__dict__["reason"] for record in caplog.records if record.getMessage() == "replica lost"]
        assert lost == [reason] * 2
        assert await service.submit(7) == 7
        assert service.metrics.states.count("ready") == 3


async def test_a_batch_waiting_in_the_pipe_is_not_suspect(tmp_path: Path) -> None:
    service = compose(tmp_path, max_batch_tokens=1)
    async with running(service):
        computing, waiting = asyncio.create_task(service.submit(GATE)), asyncio.create_task(service.submit(7))
        for _ in range(2):
            await service.metrics.ready.acquire()
            for _ in range(10):
                await asyncio.sleep(0)
            assert value(service.metrics, "batches_in_flight") == 2
            os.kill(service.pid, signal.SIGKILL)
        with pytest.raises(ReplicaLost):
            await computing
        assert await waiting == 7, "it was in the pipe of two lost replicas"


async def test_one_of_two_replicas_continues_when_the_other_is_killed(tmp_path: Path) -> None:
    async with running(compose(tmp_path, devices=("cpu", "cpu"))) as service:
        assert service.pool.names == ("cpu", "cpu#2")
        os.kill(service.pid, signal.SIGKILL)
        answers = await asyncio.gather(*(service.submit(each) for each in range(50)))
        assert answers == list(range(50))
        assert service.pool.is_ready()
        for _ in range(3):
            await service.metrics.ready.acquire()
        assert service.pool.states() == {"cpu": "ready", "cpu#2": "ready"}


# hangs


async def test_a_hung_batch_restarts_its_replica(tmp_path: Path) -> None:
    async with running(compose(tmp_path, policy=without_back_off(hang_timeout_s=0.05))) as service:
        with pytest.raises(ReplicaLost):
            await service.submit(GATE)
        assert service.losses() == {"hang": 2}


async def test_a_batch_is_hung_when_it_takes_far_longer_than_predicted(tmp_path: Path) -> None:
    policy = without_back_off(hang_timeout_s=3600.0, min_batch_timeout_s=0.05)
    service = compose(tmp_path, policy=policy, predict=lambda model, tokens, rows: 0.01 * tokens)
    async with running(service):
        with pytest.raises(ReplicaLost):
            await service.submit(GATE)
        assert service.losses() == {"hang": 2}


async def test_a_stopped_process_is_replaced(tmp_path: Path) -> None:
    async with running(compose(tmp_path, policy=without_back_off(hang_timeout_s=1.0))) as service:
        os.kill(service.pid, signal.SIGSTOP)
        assert await service.submit(3, 4) == 7
        assert service.losses() == {"hang": 1}


async def test_a_process_stopped_during_its_restart_is_replaced(tmp_path: Path) -> None:
    policy = without_back_off(restart_factor=2.0, min_restart_timeout_s=0.0)
    async with running(compose(tmp_path, policy=policy, load=load_and_stop_once)) as service:
        os.kill(service.pid, signal.SIGKILL)
        assert await service.submit(3, 4) == 7
        assert service.losses().keys() == {"killed", "start"}


# rows that fail


@pytest.mark.parametrize("bad", [POISON, NAN])
async def test_a_row_that_fails_in_the_forward_fails_alone(tmp_path: Path, bad: int) -> None:
    async with running(compose(tmp_path)) as service:
        answers = await service.submit_all(1, 2, bad, 4, 5, bad)
        assert value(service.metrics, "batches_total", model="m") == 1
        assert [isinstance(answer, InferenceFailed) for answer in answers] == [False, False, True, False, False, True]
        assert [answer for answer in answers if isinstance(answer, float)] == [1, 3, 7, 9]
        assert service.losses() == {}, "the replica keeps running"
        assert value(service.metrics, "failed_rows_total", model="m") == 2
        assert value(service.metrics, "canary_runs_total", replica="cpu", result="ok") == 1


async def test_kernels_that_failed_the_self_test_are_counted_and_named(tmp_path: Path) -> None:
    async with running(compose(tmp_path, load=load_without_int8)) as service:
        assert value(service.metrics, "kernels_left_out", replica="cpu", model="m", kind="linear") == 1
        assert value(service.metrics, "kernels_left_out", replica="cpu", model="m", kind="attention") == 0
        assert service.pool.left_out() == {"cpu": ["m: linear int8"]}


async def test_a_batch_out_of_memory_is_halved_and_later_batches_are_smaller(tmp_path: Path) -> None:
    service = compose(tmp_path, max_batch_tokens=40_000, max_queue_tokens=100_000)
    long = [row(each, *[1] * 9_999) for each in range(4)]
    async with running(service):
        answers = (await service.batcher.submit(long)).outputs
        assert [float(answer.scores[0, 0]) for answer in answers] == [9999, 10000, 10001, 10002]
        assert value(service.metrics, "out_of_memory_total", model="m") == 1
        assert value(service.metrics, "batch_budget_tokens", model="m") == 20_000
        assert len((await service.batcher.submit(_shifted(long))).outputs) == 4
        assert value(service.metrics, "out_of_memory_total", model="m") == 1
        assert service.losses() == {}


def _shifted(rows: list[Encoding]) -> list[Encoding]:
    return [row(*(each.ids + 1).tolist()) for each in rows]


async def test_a_single_row_out_of_memory_is_an_out_of_memory_error(tmp_path: Path) -> None:
    async with running(compose(tmp_path)) as service:
        first, huge, last = await service.submit_all(1, HUGE, 3)
        assert (first, last) == (1, 5)
        assert isinstance(huge, OutOfMemory)
        assert (huge.status, huge.code, huge.retryable) == (503, "out_of_memory", True)
        assert value(service.metrics, "batch_budget_tokens", model="m") == MIN_BATCH_TOKENS


# the canary


async def test_a_batch_that_breaks_the_device_is_recomputed_on_another_process(tmp_path: Path) -> None:
    async with running(compose(tmp_path)) as service:
        answers = await service.submit_all(1, BREAK, 3)
        assert [answers[0], answers[2]] == [1, 5], "computed by a new process"
        assert isinstance(answers[1], ReplicaLost)
        assert service.losses() == {"wrong": 2}
        assert value(service.metrics, "canary_runs_total", replica="cpu", result="wrong") == 2


async def test_the_canary_finds_a_silently_broken_device_while_it_is_idle(tmp_path: Path) -> None:
    async with running(compose(tmp_path, policy=without_back_off(canary_interval_s=0.05))) as service:
        await service.metrics.ready.acquire()
        assert await service.submit(SILENT_BREAK) == SILENT_BREAK
        await service.metrics.ready.acquire()
        assert service.losses() == {"wrong": 1}
        assert await service.submit(3, 4) == 7
        assert value(service.metrics, "replica_device_memory_bytes", replica="cpu", kind="allocated") > 0


async def test_replicas_with_different_answers_fail_the_start(tmp_path: Path) -> None:
    service = compose(tmp_path, devices=("cpu", "cpu"), load=load_wrong_after_first)
    with pytest.raises(StartupError, match="m in float32 answers differently than on cpu"):
        await service.pool.start(service.batcher.feed)
    assert service.pool.pids() == {}


async def test_liveness_fails_when_every_replica_crashes_repeatedly(tmp_path: Path) -> None:
    lost = asyncio.Semaphore(0)

    async def count(seconds: float) -> None:
        lost.release()

    policy = RestartPolicy(threads=1, max_crashes=3, sleep=count)
    async with running(compose(tmp_path, policy=policy, load=load_wrong_after_first)) as service:
        os.kill(service.pid, signal.SIGKILL)
        for _ in range(2):
            await lost.acquire()
        assert service.pool.why_not_alive() is None
        await lost.acquire()
        assert service.pool.why_not_alive() == "every replica was lost 3 times or more in a row (cpu: 3, last wrong)"
        assert service.losses() == {"killed": 1, "wrong": 2}
        await lost.acquire()
        assert service.losses()["wrong"] == 3, "restarts continue"


# the kernel's memory limit

LIMIT_BYTES = 300 * 2**20

LIMITED = """
import asyncio, sys
from pathlib import Path
from service.errors import ReplicaLost
from tests.fakes import EXHAUST_MEMORY
from tests.system.replicas import compose, running

async def main():
    async with running(compose(Path(sys.argv[1]))) as service:
        answers = await service.submit_all(1, EXHAUST_MEMORY, 3)
        lost = [each for each in answers if isinstance(each, ReplicaLost)]
        print([each for each in answers if each not in lost], len(lost), service.losses(), flush=True)

asyncio.run(main())
"""


@contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """A control group with `limit` bytes of memory; skips the test where none can be made."""
    root = Path("/sys/fs/cgroup")
    is_v2 = (root / "cgroup.controllers").exists()
    group = (root if is_v2 else root / "memory") / f"replica-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error.strerror}")
    try:
        (group / ("memory.max" if is_v2 else "memory.limit_in_bytes")).write_text(str(limit))
        yield group
    except PermissionError:
        pytest.skip("the memory of a control group cannot be limited here")
    finally:
        group.rmdir()


def test_an_oom_kill_is_recorded_as_oom(tmp_path: Path) -> None:
    enter = 'echo $$ > "$1/cgroup.procs" && shift && exec "$@"'
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with memory_group(LIMIT_BYTES) as group:
        command = ["sh", "-c", enter, "sh", str(group), sys.executable, "-c", LIMITED, str(tmp_path)]
        ran = subprocess.run(command, stdout=subprocess.PIPE, env=environment, text=True, timeout=60)
    assert ran.stdout.strip() == "[1.0, 5.0] 1 {'oom': 2}"


def fail_socketpairs(monkeypatch: pytest.MonkeyPatch, failures: list[Exception]) -> None:
    """Makes each of the next calls of socket.socketpair raise one of `failures`."""
    made = socket.socketpair

    def socketpair() -> tuple[socket.socket, socket.socket]:
        if failures:
            raise failures.pop()
        return made()

    monkeypatch.setattr(socket, "socketpair", socketpair)


async def test_a_restart_without_file_descriptors_is_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(compose(tmp_path)) as service:
        await service.metrics.ready.acquire()
        fail_socketpairs(monkeypatch, [OSError(errno.EMFILE, "Too many open files")] * 3)
        os.kill(service.pid, signal.SIGKILL)
        assert await service.submit(1, 2) == 3
        assert service.losses() == {"killed": 1, "start": 3}
        assert service.pool.why_not_alive() is None
    assert "replica could not start again" in caplog.text


async def test_an_unexpected_error_does_not_end_the_supervision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(compose(tmp_path)) as service:
        await service.metrics.ready.acquire()
        fail_socketpairs(monkeypatch, [RuntimeError("can't start new thread")])
        os.kill(service.pid, signal.SIGKILL)
        assert await service.submit(1, 2) == 3
    assert "replica supervision failed" in caplog.text


async def test_liveness_fails_when_a_supervisor_ends(tmp_path: Path) -> None:
    async with running(compose(tmp_path)) as service:
        assert service.pool.why_not_alive() is None
        [keeper] = service.pool._keepers
        keeper.cancel()
        with suppress(asyncio.CancelledError):
            await keeper
        assert service.pool.why_not_alive() == "supervision has ended (replica cpu)"
