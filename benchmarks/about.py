"""What the report of a benchmark says of its making: the command, the machine, the versions and the method."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from typing import Any


def about(name: str, doc: str | None, machine: str, *packages: str) -> dict[str, Any]:
    """Of the module `name`, whose docstring `doc` tells the method behind its title and its commands."""
    return {
        "command": " ".join([f"python -m benchmarks.{name}", *sys.argv[1:]]),
        "machine": machine,
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version()} | {package: version(package) for package in packages},
        "method": (doc or "").split("\n\n", 2)[2].strip(),
    }
