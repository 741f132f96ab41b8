"""A server on this machine, as several benchmarks start it: a free port, the wait until it is ready, its end;
and what its commands report."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

POLL_S = 0.1

PATIENT = ("--default-timeout-ms", "600000", "--max-wait-ms", "600000", "--max-queue-tokens", "4194304")
"""Flags of a server that refuses nobody, as a slow device is waited for: it is the throughput that is asked for."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving(*flags: str, timeout_s: float = math.inf) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """`python -m service serve` with these flags, ready, until the end of the context: its port and its process. Ends
    the run with its log where it does not become ready."""
    port = free_port()
    with running(port, "service", "serve", "--port", str(port), *flags, timeout_s=timeout_s) as process:
        yield port, process


@contextmanager
def running(
    port: int, module: str, *words: str, folder: Path | None = None, timeout_s: float = math.inf
) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m module WORDS`, a server on this port, as `serving` runs it; `folder` is the checkout, if another."""
    command = [sys.executable, "-m", module, *words]
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as process:
        try:
            if not becomes_ready(port, process, timeout_s=timeout_s):
                log.seek(0)
                sys.exit(log.read().decode())
            yield process
        finally:
            process.terminate()


def report_of(*words: str) -> dict[str, Any]:
    """What `python -m service` with these words writes where its `--json` says."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", "service", *words, "--json", file.name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        report: dict[str, Any] = json.loads(Path(file.name).read_text(encoding="utf-8"))
    return report


def becomes_ready(
    port: int, process: subprocess.Popen[bytes], poll_s: float = POLL_S, timeout_s: float = math.inf
) -> bool:
    """Waits for it; False when the process ends first, or the time does."""
    until = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < until:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz").close()
        except URLError:
            time.sleep(poll_s)
        else:
            return True
    return False
