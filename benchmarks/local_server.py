"""A server on this machine, as several benchmarks start it: a free port, and the wait until it is ready."""

from __future__ import annotations

import math
import socket
import subprocess
import time
import urllib.request
from urllib.error import URLError

POLL_S = 0.1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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
