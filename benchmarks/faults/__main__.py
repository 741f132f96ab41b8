"""Faults: kills, hangs, exhausted memory, wrong results, careless clients, rolling restarts.

    python -m benchmarks.faults --json benchmarks/results/faults.json        # every fault, ten minutes
    python -m benchmarks.faults soak --minutes 15                            # a fault every minute

Each command has its own --help, and its module's docstring is its method.
"""

from __future__ import annotations

from benchmarks.common import dispatch

if __name__ == "__main__":
    dispatch("benchmarks.faults", __doc__, ("inject", "soak"), default="inject")
