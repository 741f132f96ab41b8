"""How a child process is started: its command, its environment, its process group. Knows not what is said to it."""

from __future__ import annotations

import os
import subprocess
import sys

KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "256"}
"""oneDNN keeps the code that it makes for a size of batch, and torch's layer above it does so once more: 1024 kernels
each, unless told otherwise, which are 0.9 MB each. These are enough for every length of one short text; packed batches
come in too many sizes for any number to help."""


def spawn(fd: int, threads: int) -> subprocess.Popen[bytes]:
    """A child that talks through the socket `fd`; it dies with the thread that calls this."""
    command = [sys.executable, "-m", "service.replicas.child", str(fd), str(os.getpid())]
    # A group of its own: a terminal's Ctrl-C is for the parent alone, even before the child can ignore it.
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, pass_fds=(fd,), env=environment(threads), process_group=0
    )


def environment(threads: int) -> dict[str, str]:
    """The parent's, but for what has to be set before the first import of a library that computes."""
    return {
        **KERNEL_CACHES,
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",
        # Threads that spin while they wait take the cores from those that compute.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
