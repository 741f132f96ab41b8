"""What quantised arithmetic costs in accuracy: the same model, the same data sets, with and without.

    python -m benchmarks.quantization --data DATA

Starts the service once for each arithmetic, lets `python -m service evaluate` ask it every example of every set, and
prints the difference in points of accuracy. Ends with status 1 where more than one point is lost.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.local_server import becomes_ready, free_port

RESULT = Path(__file__).parent / "results" / "quantization.json"
TASKS = (
    "eprstmt/dev",
    "thucnews/dev.odd",
    "tnews/dev",
    "bustm/dev",
    "afqmc/dev",
    "ocnli/dev",
    "c3/dev",
    "csldcp/dev",
    "iflytek/dev",
    "chid/dev",
    "csl/dev",
    "cluewsc/dev",
)
START_TIMEOUT_S = 300.0
MOST_LOST = 1.0


def main() -> int:
    arguments = _parse()
    exact = accuracies("none", arguments)
    near = accuracies(arguments.quantization, arguments)
    sets = {
        task: {"examples": size, "exact": before, "quantized": near[task][1], "lost": round(before - near[task][1], 2)}
        for task, (size, before) in exact.items()
    }
    for task, row in sets.items():
        print(f"{task:20}{row['exact']:8.2f}{row['quantized']:8.2f}{-row['lost']:+8.2f}")
    document = {
        "what": "accuracy in percent over HTTP, all examples, and the points lost to quantised linear maps",
        "command": f"python -m benchmarks.quantization --data DATA --quantization {arguments.quantization}",
        "machine": arguments.machine,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "model": arguments.model,
        "exact": arguments.precision,
        "quantization": arguments.quantization,
        "sets": sets,
    }
    RESULT.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return int(max(row["lost"] for row in sets.values()) > MOST_LOST)


def accuracies(quantization: str, arguments: argparse.Namespace) -> dict[str, tuple[int, float]]:
    """Examples and accuracy in percent, by data set and split."""
    with serving(arguments.model, arguments.precision, quantization) as url:
        return {task: _accuracy(task, url, arguments.data) for task in TASKS}


def _accuracy(task: str, url: str, data: Path) -> tuple[int, float]:
    name, _, split = task.partition("/")
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        flags = ["--url", url, "--task", name, "--split", split, "--data", str(data), "--json", report.name]
        subprocess.run([sys.executable, "-m", "service", "evaluate", *flags], check=True, stdout=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads(Path(report.name).read_text(encoding="utf-8"))
    return found["examples"], round(100 * found["accuracy"], 2)


@contextmanager
def serving(model: str, precision: str, quantization: str) -> Iterator[str]:
    """The URL of a server that is ready, until the end of the context."""
    port = free_port()
    flags = ["--port", str(port), "--model", model, "--precision", precision, "--quantization", quantization]
    command = [sys.executable, "-m", "service", "serve", *flags]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            if not becomes_ready(port, process, timeout_s=START_TIMEOUT_S):
                raise SystemExit("the server did not become ready")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quantization", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--model", default="mini", help="as in `serve --model` (default: mini)")
    parser.add_argument("--precision", default="bfloat16", help="the arithmetic that is compared with")
    parser.add_argument("--quantization", default="int8")
    parser.add_argument("--machine", default="2-core CPU with avx512_bf16 and avx512_vnni", help="for the result file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
