"""Load on the service while it is watched, from processes of their own: a mix of all tasks, and more than it can do.

Knows the bench command only.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIX = "zero-shot=4,similarity=3,nli=2,fill-mask=1,embed=1"
READING = ",mrc=1"
"""Needs texts that hold reading comprehension."""


@contextmanager
def loading(
    url: str, *flags: str, key: Path | None = None, texts: Path | None = None, mix: str = MIX
) -> Iterator[subprocess.Popen[bytes]]:
    """A load that runs until its duration is over or the block is left."""
    source = ["--texts", str(texts), "--mix", mix + READING] if texts and mix == MIX else ["--mix", mix]
    if key:
        source += ["--key-file", str(key)]
    command = [sys.executable, "-m", "service", "bench", "--url", url, "--warm-up", "0", *source, *flags]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()
