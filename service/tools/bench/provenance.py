"""Provenance of a report's numbers: command, day, commit, versions and the class of the machine.

A report names neither the machine nor a path on it.
"""

from __future__ import annotations

import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from service.host import count_allowed_cores, cpu_features
from service.settings import VERSION

WIDE_INSTRUCTIONS = {
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"),
    *("asimd", "sve", "bf16", "i8mm"),
}
"""CPU features that decide how fast matrices are multiplied."""

UNKNOWN = "unknown"


def provenance(module: str, argv: Sequence[str], *packages: str) -> dict[str, Any]:
    """The provenance of what `python -m module` measured with these arguments, with the versions of `packages`."""
    return {
        "command": shlex.join(["python", "-m", *module.split(), *map(redact_path, argv)]),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "versions": {"service": VERSION, "python": platform.python_version()}
        | {package: version(package) for package in packages},
    }


def redact_path(word: str) -> str:
    """A word of a command line, with FOLDER in place of the directories of a path that is not relative to the working
    directory; of `a=/b` only the part after the `=` changes."""
    name, equals, value = word.rpartition("=")
    path = Path(value)
    if not (path.is_absolute() or path.parts[:1] in (("..",), ("~",))):
        return word
    return f"{name}{equals}" + (f"FOLDER/{path.name}" if path.suffix else "FOLDER")


def commit(folder: Path = Path(__file__).parent) -> str:
    """The short hash of the code's commit, with `-dirty` if tracked files have changed; "unknown" outside a repository.

    Changed result files do not count: earlier runs write them.
    """
    try:
        _git(folder, "ls-files", "--error-unmatch", ".")  # the code may be installed below another repository
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
    """The class of this machine, without its name."""
    cores = count_allowed_cores()
    return {"platform": f"{platform.system()} {platform.machine()}", "cores": cores, "arithmetic": wide_instructions()}


def machine_class() -> str:
    """The same as a phrase; the benchmarks put it into their reports."""
    found = machine()
    wide = f" with {', '.join(found['arithmetic'])}" if found["arithmetic"] else ""
    return f"{found['cores']}-core {platform.machine()} CPU{wide}"


def wide_instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    return sorted(cpu_features(cpuinfo) & WIDE_INSTRUCTIONS)
