"""How often the model that ships is right, on every data set that the READMEs show.

    python -m benchmarks.accuracy --data DATA --json benchmarks/results/accuracy_mini.json     # three minutes
    python -m tests.readme_examples --accuracy      # what that file says into the READMEs and the model's card

Starts the service and lets `python -m service evaluate` ask it every example of every set in the zero-shot form.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.about import about, auto_precision, parser_of, save
from benchmarks.local_server import serving
from benchmarks.quantization import TASKS, evaluated

KEPT = ("task", "split", "examples", "correct", "accuracy", "interval_95", "chance", "truncated", "refused")
"""Of what `evaluate` reports; the rest is of this machine, or too long to read."""


def main() -> None:
    arguments = _parse()
    with serving("--model", "mini") as (port, _):
        sets = [accuracy(task, port, arguments.data) for task in TASKS]
    made = about("accuracy", __doc__, arguments.machine, "torch", precision=auto_precision())
    save({"what": "accuracy over HTTP, all examples", **made, "model": "mini", "sets": sets}, arguments.json)


def accuracy(task: str, port: int, data: Path) -> dict[str, Any]:
    """Of a set, given as NAME/SPLIT."""
    found = evaluated(task, f"http://127.0.0.1:{port}", data)
    print(f"{task:20}{found['accuracy']:.1%}", flush=True)
    return {key: found[key] for key in KEPT}


def _parse() -> argparse.Namespace:
    parser = parser_of("accuracy", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    return parser.parse_args()


if __name__ == "__main__":
    main()
