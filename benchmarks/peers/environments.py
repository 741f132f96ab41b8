"""A virtual environment for each peer, made when it is first needed and again when its requirements have changed.

torch comes first and by its exact version, so that a build chosen by pip's own configuration is kept.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(".peers")
REQUIREMENTS = Path(__file__).parent / "requirements"


def ensure(name: str) -> Path:
    """The interpreter of a peer's environment. RuntimeError when it cannot be made."""
    requirements = REQUIREMENTS / f"{name}.txt"
    folder = (FOLDER / name).absolute()
    python, stamp = folder / "bin" / "python", folder / "stamp"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return python
    print(f"{name}: installing into {FOLDER / name}, minutes", file=sys.stderr)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    torch = next(line for line in requirements.read_text().splitlines() if line.startswith("torch=="))
    for command in ([sys.executable, "-m", "venv", str(folder)], [*pip, torch], [*pip, "-r", str(requirements)]):
        if (status := subprocess.run(command).returncode) != 0:
            raise RuntimeError(f"{name}: its environment cannot be made: {command[2]} ends with {status}")
    stamp.write_text(digest)
    return python


def versions(python: Path, packages: tuple[str, ...]) -> dict[str, str]:
    """Of the packages that an environment holds."""
    program = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    done = subprocess.run([python, "-c", program, *packages], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found
