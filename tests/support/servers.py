"""Server processes: start, restart on the same port, observation over HTTP and by the system, stop."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

import httpx
import psutil

START_S = 300.0
END_S = 120.0
POLL_S = 0.05
SERVE = ("service", "serve")
ENGINE_SERVER = "tests.support.engine_server"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """One server on a free port. `module` is what `python -m` runs, with its first arguments.

    `on_spawn` is called with the process id before the server has children. `folder` is the checkout that it runs.
    """

    def __init__(
        self,
        log: Path,
        flags: Sequence[str] = (),
        module: Sequence[str] = SERVE,
        *,
        on_spawn: Callable[[int], None] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self._command = [sys.executable, "-m", *module, "--port", str(self.port), *flags]
        self._on_spawn = on_spawn
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> psutil.Process:
        assert self._process is not None, "call start() or spawn() first"
        return psutil.Process(self._process.pid)

    def spawn(self) -> None:
        """Starts the process and returns immediately."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, cwd=self._folder, stdout=log, stderr=log)
        if self._on_spawn is not None:
            self._on_spawn(self._process.pid)

    def start(self, timeout_s: float = START_S) -> None:
        self.spawn()
        self.await_ready(timeout_s)

    def await_ready(self, timeout_s: float = START_S, poll_s: float = POLL_S) -> None:
        """Raises RuntimeError with the server's log when it exits before it is ready, or after `timeout_s`."""
        assert self._process is not None, "call spawn() first"
        until = time.monotonic() + timeout_s
        while self._process.poll() is None and time.monotonic() < until:
            try:
                urllib.request.urlopen(f"{self.url}/readyz").close()
            except URLError:
                time.sleep(poll_s)
            else:
                return
        self.kill()
        raise RuntimeError(f"the server did not start:\n{self.log.read_text(encoding='utf-8')}")

    def stop(self) -> int:
        """Sends SIGTERM, as an orchestrator does; returns the exit status."""
        return self._end(subprocess.Popen.terminate)

    def kill(self) -> int:
        return self._end(subprocess.Popen.kill)

    def _end(self, send: Callable[[subprocess.Popen[bytes]], None]) -> int:
        if self._process is None:
            return 0
        send(self._process)
        return self._process.wait(END_S)

    def metric(self, name: str, **labels: str) -> float:
        """The sum over all series of `erlangshen_NAME` that have these labels."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        series = (line.rpartition(" ") for line in self.get("/metrics").text.splitlines())
        return sum(
            float(value)
            for selector, _, value in series
            if selector.partition("{")[0] == f"erlangshen_{name}" and all(label in selector for label in wanted)
        )

    def states(self) -> list[str]:
        """The state of each replica."""
        return [replica["state"] for replica in self.get("/v1/models").json()["replicas"]]

    def is_whole(self) -> bool:
        """Whether every replica is ready."""
        return set(self.states()) == {"ready"}

    def replicas(self) -> list[psutil.Process]:
        """The worker processes, the oldest first."""
        return sorted(self.process.children(), key=lambda child: child.create_time())

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds of the parent and of its children so far."""
        parent, *children = [sum(part.cpu_times()[:2]) for part in (self.process, *self.process.children())]
        return parent, sum(children)

    def pin(self) -> None:
        """Pins the replica to the first core, its parent and this process to the others."""
        first, *others = sorted(os.sched_getaffinity(0))
        if others:
            os.sched_setaffinity(0, others)
            self.process.cpu_affinity(others)
            for child in self.process.children():
                child.cpu_affinity([first])

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=END_S, trust_env=False).raise_for_status()


@contextmanager
def running(*servers: Server) -> Iterator[None]:
    """Starts all servers concurrently; kills them at the end."""
    try:
        for server in servers:
            server.spawn()
        for server in servers:
            server.await_ready()
        yield
    finally:
        for server in servers:
            server.kill()


@contextmanager
def serving(
    *flags: str, module: Sequence[str] = SERVE, folder: Path | None = None, timeout_s: float = START_S
) -> Iterator[Server]:
    """Runs one server inside the block. The error of a failed start contains the server's log."""
    with tempfile.TemporaryDirectory() as logs:
        server = Server(Path(logs) / "log", flags, module, folder=folder)
        try:
            server.start(timeout_s)
            yield server
        finally:
            server.stop()


async def until(condition: Callable[[], bool], within_s: float) -> None:
    """Calls `condition` in a thread until it is true; raises TimeoutError after `within_s`."""
    end = time.monotonic() + within_s
    while not await asyncio.to_thread(condition):
        if time.monotonic() > end:
            raise TimeoutError(f"{condition} did not come true within {within_s:g} s")
        await asyncio.sleep(POLL_S)
