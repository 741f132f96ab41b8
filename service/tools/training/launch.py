"""Starts the processes of a run on several devices, as torchrun does on one machine."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
POLL_S = 0.1
GRACE_S = 10.0


def is_worker() -> bool:
    """Whether this process is one of several, started by `launch` or by torchrun."""
    return "LOCAL_RANK" in os.environ


def launch(argv: Sequence[str], num_processes: int) -> int:
    """Runs `finetune ARGV` in several processes. Returns the first exit code that is not 0; the other
    processes are stopped then. If this process is killed, so are they."""
    command = [sys.executable, "-m", "service.__main__", "finetune", *argv]
    common = {
        **os.environ,
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    workers = []
    for rank in range(num_processes):
        environment = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        workers.append(subprocess.Popen(command, env=environment, preexec_fn=_die_with_parent))
    try:
        return _wait(workers)
    finally:
        _stop(workers)


def _wait(workers: Sequence[subprocess.Popen[bytes]]) -> int:
    while True:
        codes = [worker.poll() for worker in workers]
        if failed := next((code for code in codes if code), 0):
            return failed if failed > 0 else 128 - failed
        if all(code == 0 for code in codes):
            return 0
        time.sleep(POLL_S)


def _stop(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    running = [worker for worker in workers if worker.poll() is None]
    for worker in running:
        worker.terminate()
    for worker in running:
        try:
            worker.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            worker.kill()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
