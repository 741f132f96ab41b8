"""The blocks of code in the documents, and a folder in which they run as a reader runs them.

A block that cannot run in a test has the line `<!-- not run: REASON -->` before it, with one of `REASONS`; one with
`<!-- needs: MODULE -->` runs where that module is installed. In the folder, `python -m service serve` and `make serve`
start a server in the background, in place of the one before, and so does `python -m monitoring.receiver`; `curl` fails
where the server refuses; no other target of `make` runs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

from tests.support.servers import END_S, free_port

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
GUIDES = {"claims", "clients", "deployment", "labels", "monitoring", "operations", "reliability"}
"""Pages of docs/zh that are guides of their own. The others follow the English page of their name."""
ADDRESS = "http://127.0.0.1:8000"
RUN_S = 1800.0
BLOCK = re.compile(
    r"(?:^<!-- (?P<comment>[^\n]*?) -->\n)?^(?P<indent> *)```(?P<language>bash|python)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
STARTS = re.compile(r"(?:-m service|make) serve\b")
"""What starts a server of the page's own."""
NOT_RUN = "not run: "
NEEDS = "needs: "
REASONS = {
    "builds an image or needs one",
    "changes this machine",
    "depends on the speed of the machine",
    "downloads a model",
    "installs packages",
    "needs a cluster",
    "needs data sets",
    "needs placeholders filled in",
    "takes long",
}


@dataclass(frozen=True, slots=True)
class Block:
    page: str
    line: int
    language: str
    code: str
    comment: str

    @property
    def is_marked(self) -> bool:
        return self.comment.startswith(NOT_RUN)

    @property
    def is_client(self) -> bool:
        """Whether it needs the client library of a protocol: tests/clients/test_pages.py runs it."""
        return self.comment.startswith("client:")

    @property
    def is_possible(self) -> bool:
        """Whether the module that it needs is installed."""
        return not self.comment.startswith(NEEDS) or find_spec(self.comment.removeprefix(NEEDS)) is not None

    @property
    def is_refused(self) -> bool:
        """Whether it shows an error of the server."""
        return self.comment == "example:mistake"


def is_translation(page: Path) -> bool:
    return page.parent.name == "zh" and page.stem not in GUIDES


def english_of(page: Path) -> Path:
    """The English page that a Chinese one follows."""
    return ROOT / "CONTRIBUTING.md" if page.stem == "contributing" else ROOT / "docs" / page.name


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    name = str(page.relative_to(ROOT))
    found = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
        found.append(Block(name, line, match["language"], code, match["comment"] or ""))
    return found


class Sandbox:
    """A folder with the commands that blocks call. `url` is a server for blocks before the first that starts one."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self._url = url
        self._port = free_port()
        self._commands = folder / ".venv" / "bin"
        self._commands.mkdir(parents=True)
        for name, script in _scripts().items():
            command = self._commands / name
            command.write_text(f"#!/bin/bash\n{script}\n")
            command.chmod(0o755)
        (folder / "benchmarks").symlink_to(ROOT / "benchmarks")

    def run(self, block: Block) -> subprocess.CompletedProcess[str]:
        is_own = self._pid_file.exists() or STARTS.search(block.code) is not None
        url = f"http://127.0.0.1:{self._port}" if is_own else self._url
        code = block.code.replace(ADDRESS, url)
        interpreter = ["python", "-c"] if block.language == "python" else ["bash", "-euo", "pipefail", "-c"]
        return self._run([*interpreter, code])

    def stop(self) -> None:
        for pid_file in self.folder.glob("*.pid"):
            stop_server(pid_file)

    @property
    def _pid_file(self) -> Path:
        return self.folder / "server.pid"

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        path = f"{self._commands}:{kept['PATH']}"
        own = {"HOME": str(self.folder), "PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        own |= {"PAGE_PORT": str(self._port), "PAGE_PID_FILE": str(self._pid_file)}
        command = [str(self._commands / command[0]) if command[0] == "python" else command[0], *command[1:]]
        return subprocess.run(
            command, cwd=self.folder, env=kept | own, capture_output=True, text=True, timeout=RUN_S, check=False
        )


@contextmanager
def sandbox(folder: Path, url: str) -> Iterator[Sandbox]:
    made = Sandbox(folder, url)
    try:
        yield made
    finally:
        made.stop()


def stop_server(pid_file: Path) -> None:
    if not pid_file.exists():
        return
    process = psutil.Process(int(pid_file.read_text()))
    process.terminate()
    process.wait(END_S)
    pid_file.unlink()


def _scripts() -> dict[str, str]:
    serve = f'exec {sys.executable} -m tests.support.page_server "$@"'
    receiver = f'exec {sys.executable} -m tests.support.page_server receiver "$@"'
    return {
        "curl": 'PATH=${PATH#*:}\nexec curl --silent --show-error --fail-with-body --max-time 300 "$@"',
        "make": f"""\
[ "$1" = serve ] || {{ echo "make $1 is not run by tests: mark the block" >&2; exit 2; }}
flags=${{2#ARGS=}}
eval "set -- $flags"
{serve}""",
        "python": f"""\
if [ "$1 $2 $3" = "-m service serve" ]; then shift 3; {serve}; fi
if [ "$1 $2" = "-m monitoring.receiver" ]; then shift 2; {receiver}; fi
exec {sys.executable} "$@\"""",
    }
