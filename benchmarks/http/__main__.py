"""HTTP: cost of a request around the engine, rate over HTTP against the engine's, probes under load, tracing.

    python -m benchmarks.http front         # cost of a request in the parent process, and where that process saturates
    python -m benchmarks.http fronts        # whether several front processes with one pool would scale
    python -m benchmarks.http rates         # rows/s over HTTP, over those of the bare engine
    python -m benchmarks.http probes        # latency of /livez and /readyz under full load
    python -m benchmarks.http tracing       # what spans cost

Each command has its own --help, and its module's docstring is its method.
"""

from __future__ import annotations

from benchmarks.common import dispatch

if __name__ == "__main__":
    dispatch("benchmarks.http", __doc__, ("front", "fronts", "rates", "probes", "tracing"))
