"""Faults: kills, hangs, exhausted memory, wrong results, careless clients, rolling restarts.

    python -m benchmarks.faults --json benchmarks/results/faults.json        # every fault, ten minutes
    python -m benchmarks.faults soak --minutes 30                            # a fault every minute

Each command has its own --help, and its module's docstring is its method.
"""

from __future__ import annotations

import sys

from benchmarks.common import dispatch

COMMANDS = {name: f"benchmarks.faults.{name}" for name in ("inject", "soak")}

if __name__ == "__main__":
    sys.exit(dispatch("faults", __doc__, COMMANDS, sys.argv[1:], default="inject"))
