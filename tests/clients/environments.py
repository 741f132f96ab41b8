"""One environment for each group of client libraries, and the scripts that run in them against a server.

The libraries are not installed beside the service: they need other versions of what it imports. An environment is made
in `.clients/GROUP` from `requirements/clients/GROUP.txt` on first use, and again when that list has changed.
"""

from __future__ import annotations

import ast
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".clients"
REQUIREMENTS = ROOT / "requirements" / "clients"
SCRIPTS = Path(__file__).parent / "scripts"
RUN_S = 1800.0
PASSED = "passed"


def python_of(group: str) -> Path:
    """The interpreter of a group's environment. Several test processes may call this at the same time."""
    folder, wanted = ENVIRONMENTS / group, REQUIREMENTS / f"{group}.txt"
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    ENVIRONMENTS.mkdir(exist_ok=True)
    with (ENVIRONMENTS / f"{group}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted.read_text():
            stamp.unlink(missing_ok=True)
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
            install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement", wanted]
            subprocess.run([python, *install], check=True)
            stamp.write_text(wanted.read_text())
    return python


def checks_of(script: str) -> list[str]:
    """The names of the checks in a script, without importing it."""
    tree = ast.parse((SCRIPTS / f"{script}.py").read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return [node.name for node in functions if node.name.startswith("check_")]


def run_checks(group: str, script: str, **variables: str) -> Mapping[str, str]:
    """Runs all checks of a script in one process: by name, `passed` or the traceback. `variables` are for its
    environment."""
    command = [python_of(group), SCRIPTS / "run_checks.py", SCRIPTS / f"{script}.py"]
    done = subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=RUN_S)
    assert done.returncode == 0, done.stderr
    outcomes: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return outcomes


def environment(**variables: str) -> dict[str, str]:
    """Without proxies and without the switch that keeps the hub's client from every server, also a local one."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    kept.pop("HF_HUB_OFFLINE", None)
    return {**kept, "HF_HUB_DISABLE_TELEMETRY": "1", **variables}
