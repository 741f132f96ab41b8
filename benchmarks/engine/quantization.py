"""Accuracy over HTTP on every data set, and what quantised arithmetic costs of it.

    python -m benchmarks.engine quantization --data DATA --json benchmarks/results/quantization.json    # int8, on a CPU
    python -m benchmarks.engine quantization --data DATA --device cuda    # int8 and fp8, as far as the GPU has them
    python -m benchmarks.engine quantization --data DATA --quantization none \
        --json benchmarks/results/accuracy_mini.json
    python -m tests.readme_examples --accuracy       # writes the last file into the READMEs and the model's card

Starts the service once for each arithmetic, lets `python -m service evaluate` send it every example of every set in the
zero-shot form, and prints the table of docs/performance.md. Exits with 1 where more than one point is lost. With
`--quantization none` nothing is compared: the report holds what `evaluate` says of each set.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import about, parser_of, save, service_report
from service.domain import Quantization
from service.engine.device import resolve_precision
from service.engine.linear import choose
from service.errors import SettingError
from tests.support.servers import serving

QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "fp8")
TASKS = (
    *("eprstmt/dev", "thucnews/dev.odd", "tnews/dev", "bustm/dev", "afqmc/dev", "ocnli/dev"),
    *("c3/dev", "csldcp/dev", "iflytek/dev", "chid/dev", "csl/dev", "cluewsc/dev"),
)
MOST_LOST = 1.0

KEPT = ("examples", "correct", "accuracy", "interval_95", "chance", "truncated", "refused")
"""Of the report of `evaluate`; the rest is of this machine, or long."""


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    device = torch.device(arguments.device)
    wanted = arguments.quantization.split(",") if arguments.quantization else list(on(device))
    compared = [quantization for quantization in wanted if quantization != "none"]
    if not wanted:
        sys.exit(f"{device} has no quantised arithmetic")
    sets = evaluated("none", arguments)
    for quantization in compared:
        for row, found in zip(sets, evaluated(quantization, arguments), strict=True):
            lost = round(100 * (row["accuracy"] - found["accuracy"]), 2)
            row[quantization] = {"accuracy": found["accuracy"], "lost": lost}
    precision = resolve_precision(arguments.precision, device)
    print_table(sets, precision, compared)
    document = {
        "what": "accuracy over HTTP, and the points lost to quantised linear maps",
        **about(arguments, argv, "torch", precision=precision),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "examples": f"{arguments.limit} of each set at most" if arguments.limit else "all",
        "model": arguments.model,
        "sets": sets,
    }
    save(document, arguments.json)
    return int(any(row[quantization]["lost"] > MOST_LOST for row in sets for quantization in compared))


def on(device: torch.device) -> Iterator[Quantization]:
    """Every quantisation that this device computes in."""
    for quantization in QUANTIZATIONS:
        try:
            choose(device, torch.bfloat16, quantization)
        except SettingError as error:
            print(f"{quantization}: {error.detail}")
        else:
            yield quantization


def evaluated(quantization: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """What `evaluate` reports of each set, sent to a server with this arithmetic."""
    device = "cuda:0" if arguments.device == "cuda" else arguments.device
    serve = ["--model", arguments.model, "--devices", device]
    serve += ["--precision", arguments.precision, "--quantization", quantization]
    found = []
    with serving(*serve) as server:
        for task in arguments.sets:
            name, _, split = task.partition("/")
            flags = ["--url", server.url, "--task", name, "--split", split, "--data", str(arguments.data)]
            flags += ["--limit", str(arguments.limit)] if arguments.limit else []
            report = service_report("evaluate", *flags)
            found.append({"task": name, "split": split, **{key: report[key] for key in KEPT}})
    return found


def print_table(sets: Sequence[Mapping[str, Any]], precision: str, quantizations: Sequence[str]) -> None:
    titles = ["set", precision, *(title for each in quantizations for title in (each, "lost"))]
    print("| " + " | ".join(titles) + " |\n|---|" + "---:|" * (len(titles) - 1))
    for row in sets:
        cells = [f"{row['task']}/{row['split']}", f"{100 * row['accuracy']:.1f} %"]
        for each in quantizations:
            cells += [f"{100 * row[each]['accuracy']:.1f} %", f"{row[each]['lost']:.1f}"]
        print("| " + " | ".join(cells) + " |")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("engine quantization", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--model", default="mini", help="as in `serve --model` (default: mini)")
    parser.add_argument(
        "--precision", default="auto", help="the arithmetic that is compared with (default: %(default)s)"
    )
    parser.add_argument("--quantization", default="", help="of int8,fp8, or none; default: each that the device has")
    parser.add_argument("--sets", nargs="+", default=TASKS, metavar="SET/SPLIT", help="default: all twelve")
    parser.add_argument("--limit", type=int, default=0, help="only so many examples of each set")
    return parser.parse_args(argv)
