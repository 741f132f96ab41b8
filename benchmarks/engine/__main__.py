"""The engine: rate against transformers and bare matrix products, on a GPU, quantised, as served; start; memory.

    python -m benchmarks.engine cpu              # against transformers and the bare matrix products
    python -m benchmarks.engine cuda             # every part of the GPU check; the same as python -m benchmarks.gpu
    python -m benchmarks.engine quantization     # accuracy with int8 and fp8; accuracy of `mini` on all data sets
    python -m benchmarks.engine speed            # latency models of common shapes, for python -m service plan
    python -m benchmarks.engine served           # the 1.3B shape over HTTP, against transformers
    python -m benchmarks.engine start            # from the start of the process to ready
    python -m benchmarks.engine memory           # peak memory while a large checkpoint loads

Each command has its own --help, and its module's docstring is its method.
"""

from __future__ import annotations

import sys

from benchmarks.common import dispatch

NAMES = ("cpu", "cuda", "quantization", "speed", "served", "start", "memory")
COMMANDS = {name: f"benchmarks.engine.{name}" for name in NAMES}

if __name__ == "__main__":
    sys.exit(dispatch("engine", __doc__, COMMANDS, sys.argv[1:]))
