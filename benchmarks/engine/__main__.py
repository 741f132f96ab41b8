"""The engine: rate against transformers and bare matrix products, quantised, as served; start; memory.

    python -m benchmarks.engine cpu              # against transformers and the bare matrix products
    python -m benchmarks.engine runtimes         # against ONNX Runtime and OpenVINO, at equal precision
    python -m benchmarks.engine waiting          # how long torch's threads should wait busily for the next step
    python -m benchmarks.engine quantization     # accuracy with int8 and fp8; accuracy of `mini` on all data sets
    python -m benchmarks.engine speed            # latency models of common shapes, for python -m service plan
    python -m benchmarks.engine served           # the 1.3B shape over HTTP, against transformers
    python -m benchmarks.engine start            # from the start of the process to ready
    python -m benchmarks.engine memory           # peak memory while a large checkpoint loads

On a GPU: `python -m benchmarks.gpu`, every part in one command.

Each command has its own --help, and its module's docstring is its method.
"""

from __future__ import annotations

from benchmarks.common import dispatch

COMMANDS = ("cpu", "runtimes", "waiting", "quantization", "speed", "served", "start", "memory")

if __name__ == "__main__":
    dispatch("benchmarks.engine", __doc__, COMMANDS)
