"""Measures the engine on a GPU: what it computes, what it costs, and how far it is from what the GPU could do.

    python -m benchmarks.gpu                       # one GPU, some minutes
    python -m benchmarks.gpu --device cpu --tiny   # does it run? without numbers that mean anything

Parts: parity (every backend, graphs and quantised maps against our own float32 on the CPU), attention (backends side by
side), full batches (128-token rows of the 1.3B shape against a bare bf16 product; memory), maps (what fusing gains),
latency (32 tokens, with and without graphs), quantised maps, overlap (the next batch given while one runs), over HTTP
(the share of the engine's rate that the whole service reaches), restart (a second process with the kernels that the
first compiled). A part that fails says so, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.about import about
from benchmarks.gpu_model import LARGE, NARROW, TINY, make_engine
from benchmarks.gpu_parts import PARTS
from benchmarks.gpu_setting import Figures, Setting, release

RESULTS = Path(__file__).parent / "results"
METHOD = (
    "median of so many runs after two that do not count (latency: ten times as many); a run ends when the outputs are "
    "in host memory; operations counted: matrix products and attention"
)


def run_part(name: str, part: Callable[[Setting], Figures], setting: Setting) -> Figures:
    release(setting.device)
    started = time.perf_counter()
    try:
        figures = part(setting)
    except Exception as error:  # noqa: BLE001 - the time on a GPU is short: the other parts are wanted all the same
        figures = {"failed": f"{type(error).__name__}: {error}"}
    print_figures(name, figures)
    print(f"  ({time.perf_counter() - started:.0f} s)", flush=True)
    return figures


def print_figures(name: str, figures: Figures) -> None:
    print(f"\n{name}")
    for key, value in figures.items():
        pairs = value if isinstance(value, dict) else {"": value}
        print(f"  {key:28}" + "".join(f"  {what} {_short(number)}" for what, number in pairs.items()))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    device = torch.device(arguments.device)
    is_tiny = arguments.tiny
    setting = Setting(
        device=device,
        shape=TINY if is_tiny else LARGE,
        small=TINY if is_tiny else NARROW,
        batch_tokens=1024 if is_tiny else arguments.batch_tokens,
        times=2 if is_tiny else arguments.times,
    )
    if arguments.warm_up:
        make_engine(setting.shape, device).warm_up()
        return 0
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(f"{name}, torch {torch.__version__}")
    wanted = arguments.parts.split(",") if arguments.parts else PARTS
    figures = {part: run_part(part, PARTS[part], setting) for part in wanted}
    file = arguments.output / f"gpu_{re.sub(r'[^a-z0-9]+', '_', name.lower())}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(_result(name, setting, figures, argv), indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten: {file}")
    return int(any("failed" in part for part in figures.values()))


def _result(name: str, setting: Setting, figures: Figures, argv: Sequence[str] | None) -> Figures:
    return {
        "what": "the engine, and the service around it, random weights, on one GPU: " + ", ".join(figures),
        **about("gpu", __doc__, name, "torch", method=METHOD, precision="bfloat16 unless named", argv=argv),
        "times": setting.times,
        "cuda": torch.version.cuda,
        "num_layers": setting.shape.num_layers,
        "hidden_size": setting.shape.hidden_size,
        "figures": figures,
    }


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of no size, few runs: does it run?")
    parser.add_argument("--parts", default="", help=f"of {','.join(PARTS)}; default: all")
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--times", type=int, default=20, help="runs of each measurement")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON file")
    parser.add_argument("--warm-up", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
