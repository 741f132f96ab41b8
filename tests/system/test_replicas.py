"""Real worker processes with an engine without torch: start, answers, stop, failed loading and orphans."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.batching.latency_model import MIN_BATCH_TOKENS
from service.errors import CheckpointError, StartupError
from service.replicas import process
from service.replicas.process import launch
from service.replicas.protocol import Loading
from service.replicas.replica import RestartPolicy
from service.replicas.runner import Load
from tests.fakes import (
    THREADS,
    load_and_exit,
    load_forever,
    load_nothing,
    load_once,
    load_with_unexpected_error,
    open_gate,
    value,
)
from tests.system.replicas import compose, running

pytestmark = [pytest.mark.anyio, pytest.mark.system]


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The loop that the service runs on."""
    return "asyncio", {"use_uvloop": True}


async def test_a_replica_loads_answers_is_profiled_and_stops(tmp_path: Path) -> None:
    loaded: list[tuple[str, Loading]] = []
    service = compose(tmp_path, on_progress=lambda replica, loading: loaded.append((replica, loading)))
    assert service.pool.precisions("m") == []
    async with running(service):
        assert service.pool.is_ready()
        assert service.pool.precisions("m") == ["float32"]
        assert await service.submit(2, 3) == 5
        assert await service.submit(THREADS) == 1
        assert value(service.metrics, "replica_up", replica="cpu") == 1
        assert value(service.metrics, "replica_memory_bytes", replica="cpu") > 0
        async with asyncio.timeout(30):  # it is profiled while idle, and answers requests meanwhile
            while value(service.metrics, "batch_budget_tokens", model="m") != MIN_BATCH_TOKENS:
                assert await service.submit(4, 5) == 9
        assert value(service.metrics, "predicted_cost_seconds", model="m", of="token") > 0
    assert not service.pool.is_ready()
    assert service.metrics.states == ["starting", "loading", "ready", "stopped"]
    assert loaded == [("cpu", Loading("m", done, 100)) for done in (0, 50, 100)]


async def test_a_replica_takes_the_process_that_was_launched_for_it_and_later_its_own(tmp_path: Path) -> None:
    launched = launch(1)
    service = compose(tmp_path, workers=[launched])
    async with running(service):
        assert service.pid == launched.process.pid
        assert await service.submit(2, 3) == 5
        os.kill(service.pid, signal.SIGKILL)
        assert await service.submit(2, 4) == 6
        assert service.pid != launched.process.pid
    launched.discard()  # as `serve` does at its end


async def test_a_launched_process_that_has_gone_is_a_start_that_failed(tmp_path: Path) -> None:
    launched = launch(1)
    launched.process.kill()
    launched.process.wait()
    service = compose(tmp_path, workers=[launched])
    with pytest.raises(StartupError, match="killed by SIGKILL while loading"):
        await service.pool.start(service.batcher.feed)
    assert service.pool.pids() == {}


def test_a_launched_process_imports_what_it_is_called_with_and_ends_with_its_pipe(tmp_path: Path) -> None:
    (tmp_path / "noted.py").write_text("from pathlib import Path; (Path(__file__).parent / 'done').touch()")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "_SEARCH_PATH", [*process._SEARCH_PATH, str(tmp_path)])
        launched = launch(1, imports="noted")
    launched.pipe.close()
    assert launched.process.wait(30) == 1
    assert (tmp_path / "done").exists()


async def test_a_stopped_process_is_killed_after_its_grace_period(tmp_path: Path) -> None:
    policy = RestartPolicy(threads=1, stop_grace_s=0.05)
    service = compose(tmp_path, policy=policy)
    async with running(service):
        os.kill(service.pid, signal.SIGSTOP)
    assert service.metrics.states[-1] == "stopped"


async def test_a_worker_process_that_does_not_read_does_not_block_the_event_loop(tmp_path: Path) -> None:
    async with running(compose(tmp_path)) as service:
        os.kill(service.pid, signal.SIGSTOP)
        request = asyncio.create_task(service.submit(*[1] * 1_000_000))  # 12 MB: more than the buffer of a pipe
        for _ in range(10):
            await asyncio.sleep(0)
        os.kill(service.pid, signal.SIGCONT)
        assert await request == 1_000_000


async def test_a_worker_process_ignores_sigint_and_sigterm(tmp_path: Path) -> None:
    async with running(compose(tmp_path)) as service:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(service.pid, number)
        assert await service.submit(3) == 3
        assert service.metrics.states.count("ready") == 1


async def test_restarts_back_off_until_one_succeeds(tmp_path: Path) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async with running(compose(tmp_path, policy=RestartPolicy(threads=1, sleep=sleep), load=load_once)) as service:
        os.kill(service.pid, signal.SIGKILL)
        assert await service.submit(3) == 3
        assert waits == [0.0, 1.0, 2.0, 4.0]
        assert value(service.metrics, "replica_restarts_total", replica="cpu") == 4


@pytest.mark.parametrize(
    ("load", "error", "message"),
    [
        (load_nothing, CheckpointError, "no weights"),
        (load_with_unexpected_error, StartupError, "ValueError: an unexpected error"),
        (load_and_exit, StartupError, "SIGKILL"),
    ],
)
async def test_a_failed_first_load_fails_the_start(
    tmp_path: Path, load: Load, error: type[StartupError], message: str
) -> None:
    service = compose(tmp_path, devices=("cpu", "cpu"), load=load)
    with pytest.raises(error, match=message):
        await service.pool.start(service.batcher.feed)
    assert service.pool.states() == {"cpu": "stopped", "cpu#2": "stopped"}
    assert service.pool.pids() == {}


async def test_a_load_beyond_the_timeout_fails_the_start(tmp_path: Path) -> None:
    service = compose(tmp_path, policy=RestartPolicy(threads=1, start_timeout_s=0.05), load=load_forever)
    with pytest.raises(StartupError, match=r"not ready after 0\.05 s"):
        await service.pool.start(service.batcher.feed)


async def test_a_cancelled_start_leaves_no_process(tmp_path: Path) -> None:
    service = compose(tmp_path, policy=RestartPolicy(threads=1, stop_grace_s=0.05), load=load_forever)
    start = asyncio.create_task(service.pool.start(service.batcher.feed))
    await asyncio.to_thread(open_gate, tmp_path)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert service.pool.pids() == {}


@pytest.mark.parametrize("num_turns", range(1, 7))
async def test_a_start_that_is_cancelled_before_it_is_connected_ends(num_turns: int, tmp_path: Path) -> None:
    launched = launch(1)
    service = compose(tmp_path, policy=RestartPolicy(threads=1, stop_grace_s=0.05), workers=[launched])
    start = asyncio.create_task(service.pool.start(service.batcher.feed))
    for _ in range(num_turns):
        await asyncio.sleep(0)
    start.cancel()
    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await start
    assert service.pool.pids() == {}
    assert launched.process.poll() is not None


PARENT = """
import asyncio, sys
from pathlib import Path
from tests.system.replicas import compose

async def main():
    service = compose(Path(sys.argv[1]))
    await service.pool.start(service.batcher.feed)
    print(service.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("is_stopped", [False, True], ids=["idle", "stopped"])
def test_a_worker_process_exits_with_its_parent(tmp_path: Path, is_stopped: bool) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        if is_stopped:
            os.kill(child, signal.SIGSTOP)
        parent.kill()
        # The worker process holds this pipe too, so it is closed when both processes have exited.
        assert parent.stdout.read() == b""
