"""A server on this machine, as several benchmarks start it: a free port, the wait until it is ready, its end."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import URLError

POLL_S = 0.1


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
    command = [sys.executable, "-m", "service", "serve", "--port", str(port), *flags]
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            if not becomes_ready(port, process, timeout_s=timeout_s):
                log.seek(0)
                sys.exit(log.read().decode())
            yield port, process
        finally:
            process.terminate()


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
