"""A container engine (podman or docker), and the image that ERLANGSHEN_IMAGE names; without it, tests are skipped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

ENGINE = os.environ.get("ENGINE") or shutil.which("podman") or shutil.which("docker") or ""
IMAGE = os.environ.get("ERLANGSHEN_IMAGE", "")
HARDENED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
LIMIT_S = 120

needs_image = pytest.mark.skipif(
    not (ENGINE and IMAGE), reason="no docker or podman, or no image: make check-deploy IMAGE=..."
)


def engine(*arguments: str, check: bool = True) -> str:
    """The output of the engine, both streams; `check` fails the test when the engine fails.

    It runs outside this tree, because podman writes a file `oom` to its working directory when a container runs out of
    memory.
    """
    done = subprocess.run(
        [ENGINE, *arguments],
        cwd=tempfile.gettempdir(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0 or not check, done.stdout
    return done.stdout


@dataclass(frozen=True)
class Container:
    name: str

    def wait_until(self, message: str) -> None:
        """Follows the log up to a line with this message; fails when the container exits before."""
        with subprocess.Popen(
            [ENGINE, "logs", "--follow", self.name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as following:
            assert following.stdout is not None
            found = any(f'"message":"{message}"' in line for line in following.stdout)
            following.kill()
        assert found, self.logs()

    def exec(self, *command: str, check: bool = True) -> str:
        return engine("exec", self.name, *command, check=check)

    def request(self, path: str, body: Any = None, **headers: str) -> Any:
        """The JSON of a response. The request is sent inside the container, so it needs no network."""
        return json.loads(self.exec("python", "-c", REQUEST, path, json.dumps(body), json.dumps(headers)))

    def exit_code(self) -> int:
        """Waits for the container to exit."""
        engine("wait", self.name)
        return int(engine("inspect", self.name, "--format", "{{.State.ExitCode}}"))

    def logs(self) -> str:
        return engine("logs", self.name)


REQUEST = """
import json, sys, urllib.request
path, body, headers = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
body = None if body is None else json.dumps(body).encode()
with urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:8000" + path, body, headers)) as reply:
    print(reply.read().decode())
"""


@contextmanager
def running(*arguments: str, flags: tuple[str, ...] = ()) -> Iterator[Container]:
    """A hardened container of the image without a network; always removed at the end."""
    container = Container(f"erlangshen-test-{uuid.uuid4().hex[:8]}")
    engine("run", "--detach", "--name", container.name, "--network", "none", *HARDENED, *flags, IMAGE, *arguments)
    try:
        yield container
    finally:
        engine("rm", "--force", "--volumes", container.name, check=False)
