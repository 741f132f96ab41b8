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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import about, auto_precision, parser_of, save, service_report
from service.domain import Quantization
from service.engine.linear import choose
from service.errors import SettingError
from tests.support.servers import serving

QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "fp8")
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

Accuracies = Mapping[str, tuple[int, float]]
"""Examples and accuracy in percent, by data set and split."""

KEPT = ("task", "split", "examples", "correct", "accuracy", "interval_95", "chance", "truncated", "refused")
"""Of the report of `evaluate`; the rest is of this machine, or long."""


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    if arguments.quantization == "none":
        return accuracy(arguments, argv)
    device = torch.device(arguments.device)
    wanted = arguments.quantization.split(",") if arguments.quantization else on(device)
    if not wanted:
        sys.exit(f"{device} has no quantised arithmetic")
    exact = accuracies("none", arguments)
    near = {quantization: accuracies(quantization, arguments) for quantization in wanted}
    sets = {task: _row(task, exact, near) for task in exact}
    print_table(sets, arguments.precision, wanted)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    document = {
        "what": "accuracy in percent over HTTP, and the points lost to quantised linear maps",
        **about(arguments, argv, "torch"),
        "device": gpu or "cpu",
        "examples": f"{arguments.limit} of each set at most" if arguments.limit else "all",
        "model": arguments.model,
        "exact": arguments.precision,
        "quantizations": list(wanted),
        "sets": sets,
    }
    save(document, arguments.json)
    return int(max(row[quantization]["lost"] for row in sets.values() for quantization in wanted) > MOST_LOST)


def accuracy(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    """Without a comparison: the accuracy on each set in the precision that the service chooses."""
    with serving("--model", arguments.model, timeout_s=START_TIMEOUT_S) as server:
        found = [evaluated(task, server.url, arguments.data, arguments.limit) for task in arguments.sets]
    for each in found:
        print(f"{each['task']}/{each['split']}: {each['accuracy']:.1%}")
    sets = [{key: each[key] for key in KEPT} for each in found]
    made = about(arguments, argv, "torch", precision=auto_precision())
    save({"what": "accuracy over HTTP", **made, "model": arguments.model, "sets": sets}, arguments.json)
    return 0


def on(device: torch.device) -> list[Quantization]:
    """Every quantisation that this device computes in."""
    return [each for each in QUANTIZATIONS if _is_on(device, each)]


def _is_on(device: torch.device, quantization: Quantization) -> bool:
    try:
        choose(device, torch.bfloat16, quantization)
    except SettingError as error:
        print(f"{quantization}: {error.detail}")
        return False
    return True


def _row(task: str, exact: Accuracies, near: Mapping[str, Accuracies]) -> dict[str, Any]:
    size, before = exact[task]
    after = {quantization: found[task][1] for quantization, found in near.items()}
    lost = {quantization: {"accuracy": each, "lost": round(before - each, 2)} for quantization, each in after.items()}
    return {"examples": size, "exact": before, **lost}


def print_table(sets: Mapping[str, dict[str, Any]], precision: str, quantizations: Sequence[str]) -> None:
    titles = ["set", precision, *(title for each in quantizations for title in (each, "lost"))]
    print("| " + " | ".join(titles) + " |\n|---|" + "---:|" * (len(titles) - 1))
    for task, row in sets.items():
        found = [cell for each in quantizations for cell in _cells(row[each])]
        print("| " + " | ".join([task, f"{row['exact']:.1f} %", *found]) + " |")


def _cells(found: Mapping[str, float]) -> tuple[str, str]:
    return f"{found['accuracy']:.1f} %", f"{found['lost']:.1f}"


def accuracies(quantization: str, arguments: argparse.Namespace) -> Accuracies:
    device = "cuda:0" if arguments.device == "cuda" else arguments.device
    flags = ["--model", arguments.model, "--devices", device]
    flags += ["--precision", arguments.precision, "--quantization", quantization]
    with serving(*flags, timeout_s=START_TIMEOUT_S) as server:
        return {task: _accuracy(task, server.url, arguments) for task in arguments.sets}


def _accuracy(task: str, url: str, arguments: argparse.Namespace) -> tuple[int, float]:
    found = evaluated(task, url, arguments.data, arguments.limit)
    return found["examples"], round(100 * found["accuracy"], 2)


def evaluated(task: str, url: str, data: Path, limit: int = 0) -> dict[str, Any]:
    """The report of `evaluate` on a set, given as NAME/SPLIT; 0 is no limit."""
    name, _, split = task.partition("/")
    flags = ["--url", url, "--task", name, "--split", split, "--data", str(data)]
    return service_report("evaluate", *flags, *(["--limit", str(limit)] if limit else []))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("engine quantization", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--model", default="mini", help="as in `serve --model` (default: mini)")
    parser.add_argument("--precision", default="bfloat16", help="the arithmetic that is compared with")
    parser.add_argument("--quantization", default="", help="of int8,fp8, or none; default: each that the device has")
    parser.add_argument("--sets", nargs="+", default=TASKS, metavar="SET/SPLIT", help="default: all twelve")
    parser.add_argument("--limit", type=int, default=0, help="only so many examples of each set")
    return parser.parse_args(argv)
