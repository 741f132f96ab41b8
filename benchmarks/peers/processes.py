"""Peers as processes: an environment for each, started, suspended while another one is measured, ended.

An environment is made when it is first needed and again when its requirements have changed. torch, where it is needed,
comes first and by its exact version, so that a build chosen by pip's own configuration is kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.peers.peers import Place, Server
from service.host import thread_variables
from service.tools.bench.client import Client, Response

FOLDER = Path(".peers")
REQUIREMENTS = Path(__file__).parent / "requirements"
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0
QUIET_TIMEOUT_S = 120.0
QUIET_EVERY_S = 2.0
QUIET_SHARE = 0.02
"""Of a core: a server that uses less has ended what it does after its start."""


def ensure(name: str) -> Path:
    """The interpreter of a peer's environment. RuntimeError when it cannot be made."""
    requirements = REQUIREMENTS / f"{name}.txt"
    folder = (FOLDER / name).absolute()
    python, stamp = folder / "bin" / "python", folder / "stamp"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return python
    print(f"{name}: installing into {FOLDER / name}, minutes", file=sys.stderr)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    torch = [[*pip, line] for line in requirements.read_text().splitlines() if line.startswith("torch==")]
    for command in ([sys.executable, "-m", "venv", str(folder)], *torch, [*pip, "-r", str(requirements)]):
        if (status := subprocess.run(command).returncode) != 0:
            raise RuntimeError(f"{name}: its environment cannot be made: {command[2]} ends with {status}")
    stamp.write_text(digest)
    return python


def versions(python: Path, packages: tuple[str, ...]) -> dict[str, str]:
    """Of the packages that an environment holds."""
    program = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    done = subprocess.run([python, "-c", program, *packages], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def environment(threads: int) -> dict[str, str]:
    """The variables of a process that computes with so many threads."""
    return {
        **{name: value for name, value in thread_variables(threads).items() if not name.startswith("ERLANGSHEN_")},
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }


class Running:
    """One server and all its children."""

    def __init__(self, name: str, server: Server, place: Place) -> None:
        self.name = name
        self.server = server
        self.precision = place.precision
        self.log = FOLDER / f"{name.replace(' ', '-')}.log"
        self.client = Client("127.0.0.1", place.port)
        self._process = self._start(server.command(place), place)

    def _start(self, command: Sequence[str | Path], place: Place) -> subprocess.Popen[bytes]:
        variables = {
            **environment(place.threads),
            "PEER_MODEL": str(place.model),
            "PEER_PRECISION": place.precision,
            "PEER_ONNX": str(place.onnx),
            **self.server.environment,
        }
        with self.log.open("wb") as log:
            return subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    async def ready(self, text: str) -> None:
        """Returns when it has answered. RuntimeError when it ends or stays silent."""
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while True:
                    if self._process.poll() is not None:
                        raise RuntimeError(f"{self.name} has ended: see {self.log}")
                    if await self._answers(text):
                        return
                    await asyncio.sleep(0.5)
        except TimeoutError:
            raise RuntimeError(f"{self.name} does not answer: see {self.log}") from None

    async def _answers(self, text: str) -> bool:
        try:
            return (await self.ask(self.server.request(text))).status == 200
        except OSError:
            return False

    async def ask(self, body: bytes) -> Response:
        return await self.client.send("POST", self.server.path, body)

    def cpu_s(self) -> float:
        """CPU seconds of the server and its children so far."""
        return sum(sum(each.cpu_times()[:2]) for each in self._tree())

    async def quiet(self) -> None:
        """Returns when the server has ended what it does after its start, such as ours, which measures its batches; or
        after a while, for a server that polls."""
        with suppress(TimeoutError):
            async with asyncio.timeout(QUIET_TIMEOUT_S):
                before, now = -1.0, self.cpu_s()
                while now - before > QUIET_SHARE * QUIET_EVERY_S:
                    await asyncio.sleep(QUIET_EVERY_S)
                    before, now = now, self.cpu_s()

    def suspend(self) -> None:
        _signal(self._tree(), psutil.Process.suspend)

    def resume(self) -> None:
        _signal(self._tree(), psutil.Process.resume)

    def stop(self) -> None:
        """Ends all of it, by force what does not end by itself."""
        self.client.close()
        if self._process.poll() is not None:
            return
        tree = self._tree()
        _signal(tree, psutil.Process.resume)
        self._process.terminate()
        _signal(psutil.wait_procs(tree, timeout=STOP_TIMEOUT_S)[1], psutil.Process.kill)
        self._process.wait()

    def _tree(self) -> list[psutil.Process]:
        """Parents first, so that none notices its child's silence."""
        try:
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def _signal(processes: Iterable[psutil.Process], send: Callable[[psutil.Process], None]) -> None:
    """A process may have exited meanwhile."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            send(process)
