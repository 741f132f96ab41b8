"""A server in a process of its own: started, started again on the same port, looked at, ended.

Knows what a server tells of itself over HTTP, and what the system tells of its processes.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from benchmarks import about
from benchmarks.faults.cgroups import MemoryGroup
from benchmarks.local_server import becomes_ready, free_port

START_S = 300.0
END_S = 120.0
POLL_S = 0.05
SERVE = ("service", "serve")


def parser_of(name: str, doc: str | None, *, clients: int, questions: int) -> ArgumentParser:
    """Of a benchmark whose clients ask such a server what they know the answer of."""
    parser = about.parser_of(name, doc)
    parser.add_argument("--model", default="mini", help="default: mini")
    parser.add_argument("--clients", type=int, default=clients, help="default: %(default)s")
    parser.add_argument("--questions", type=int, default=questions, help="of each task (default: %(default)s)")
    return parser


class Instance:
    """Not running until `start`. `module` is what `python -m` runs, with its first arguments."""

    def __init__(
        self, log: Path, flags: Sequence[str], module: Sequence[str] = SERVE, group: MemoryGroup | None = None
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self._command = [sys.executable, "-m", *module, "--port", str(self.port), *flags]
        self._group = group
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> psutil.Process:
        assert self._process is not None, "it was started"
        return psutil.Process(self._process.pid)

    def begin(self) -> None:
        """Starts it, and does not wait."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        if self._group is not None:
            self._group.add(self._process.pid)  # it has no children yet

    def start(self) -> None:
        self.begin()
        self.await_ready()

    def await_ready(self) -> None:
        """RuntimeError with its log when it ends before, or takes too long."""
        assert self._process is not None, "it was begun"
        if not becomes_ready(self.port, self._process, timeout_s=START_S):
            self.kill()
            raise RuntimeError(f"the server did not start:\n{self.log.read_text(encoding='utf-8')}")

    def stop(self) -> int:
        """As an orchestrator does it: SIGTERM, and wait; the exit status."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        return self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(number)
        return self._process.wait(END_S)

    # what it tells

    def metric(self, name: str, **labels: str) -> float:
        """The sum over all series of `erlangshen_NAME` that have these labels."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        series = (line.rpartition(" ") for line in self._get("/metrics").text.splitlines())
        return sum(
            float(value)
            for told, _, value in series
            if told.partition("{")[0] == f"erlangshen_{name}" and all(label in told for label in wanted)
        )

    def states(self) -> list[str]:
        """Of the replicas."""
        return [replica["state"] for replica in self._get("/v1/models").json()["replicas"]]

    def is_whole(self) -> bool:
        """Whether every replica is ready."""
        return set(self.states()) == {"ready"}

    def replicas(self) -> list[psutil.Process]:
        """The children that compute, the oldest first."""
        return sorted(self.process.children(), key=lambda child: child.create_time())

    def _get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=END_S, trust_env=False).raise_for_status()


@contextmanager
def running(*instances: Instance) -> Iterator[None]:
    """All at once; none of them is left at the end."""
    try:
        for instance in instances:
            instance.begin()
        for instance in instances:
            instance.await_ready()
        yield
    finally:
        for instance in instances:
            instance.kill()


def end_in_order() -> None:
    """SIGTERM ends this process as Ctrl-C does: no server is left behind."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


async def until(condition: Callable[[], bool], within_s: float) -> None:
    """Asks again and again, in a thread, up to a bound; TimeoutError beyond it."""
    end = time.monotonic() + within_s
    while not await asyncio.to_thread(condition):
        if time.monotonic() > end:
            raise TimeoutError(f"{condition} did not come true within {within_s:g} s")
        await asyncio.sleep(POLL_S)
