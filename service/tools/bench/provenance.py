"""Where the numbers of a report come from: command, day, commit, versions and the class of the machine.

Tells neither the name of the machine nor a path on it, and knows nothing of what was measured.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from service.settings import VERSION

WIDE = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve", "bf16", "i8mm"}
UNKNOWN = "unknown"


def origin(module: str, argv: Sequence[str], *packages: str) -> dict[str, Any]:
    """Of what `python -m module` made of its arguments; `packages` are those whose versions matter for it."""
    return {
        "command": shlex.join(["python", "-m", *module.split(), *map(told, argv)]),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "versions": {"service": VERSION, "python": platform.python_version()}
        | {package: version(package) for package in packages},
    }


def told(word: str) -> str:
    """A word of a command line without where a thing lies here: FOLDER stands for it. `a=/b` keeps its `a=`."""
    name, equals, value = word.rpartition("=")
    path = Path(value)
    if not (path.is_absolute() or path.parts[:1] in (("..",), ("~",))):
        return word
    return f"{name}{equals}" + (f"FOLDER/{path.name}" if path.suffix else "FOLDER")


def commit(folder: Path = Path(__file__).parent) -> str:
    """Of the code, short, with `-dirty` where it was changed since; "unknown" where it is in no repository.

    Results that earlier runs have written are no change of the code.
    """
    try:
        _git(folder, "ls-files", "--error-unmatch", ".")  # it may be installed below a repository of something else
        short = _git(folder, "rev-parse", "--short", "HEAD")
        ours = ("--", ":/", ":(top,exclude)benchmarks/results")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", *ours)
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
    return f"{short}-dirty" if changed else short


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    """The class of this machine, not its name."""
    cores = len(os.sched_getaffinity(0))
    return {"platform": f"{platform.system()} {platform.machine()}", "cores": cores, "arithmetic": arithmetic()}


def machine_class() -> str:
    """The same in words."""
    found = machine()
    wide = f" with {', '.join(found['arithmetic'])}" if found["arithmetic"] else ""
    return f"{found['cores']}-core {platform.machine()} CPU{wide}"


def arithmetic(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The wide instructions that decide how fast a CPU multiplies."""
    words = set(cpuinfo.read_text(encoding="utf-8", errors="replace").split()) if cpuinfo.is_file() else set()
    return sorted(words & WIDE)
