"""Measures the engine on a GPU: what it computes, what it costs, and how far it is from what the GPU could do.

    python -m benchmarks.gpu                       # one GPU, some minutes
    python -m benchmarks.gpu --device cpu --tiny   # checks that all parts run; the numbers mean nothing
    make gpu OUT=DIR                               # ten minutes at most; a file for each part as soon as it is there

Parts: parity (every backend, graphs and quantised maps against our own float32 on the CPU), full batches (128-token
rows of the 1.3B shape against a bare bf16 product; memory), latency (32 tokens, with and without graphs), mix (rows of
real lengths, beside transformers' padded forward), overlap (the next batch given while one runs), quantised maps, over
HTTP (the share of the engine's rate that the whole service reaches), restart (a second process with the kernels that
the first compiled), attention (backends side by side). A part that fails reports its error, and the others go on.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, about, parser_of
from benchmarks.engine.models import (
    LARGE,
    SHAPES,
    TINY,
    Forward,
    draw_lengths,
    engine_rows_per_s,
    make_eager,
    make_engine,
    rows,
)
from service.checkpoints.shape import Shape
from service.domain import Encoding, Output, Quantization
from service.engine.attention import BACKENDS, TYPICAL, AttentionConfig, Backend, attend_in_layers
from service.engine.device import Call, CudaRecorder
from service.engine.engine import Engine
from service.engine.packing import Layout, bucket
from service.engine.trials import launched

METHOD = (
    "median of `times` runs after two that do not count (latency: ten times as many); a run ends when the outputs are "
    "in host memory; operations counted: matrix products and attention"
)
COMPILED = "TORCHINDUCTOR_CACHE_DIR"
CPU = torch.device("cpu")
NO_GPU = 3
"""The exit status where there is none."""
QUANTIZATIONS: tuple[Quantization, ...] = ("int8", "fp8")
PARITY_LENGTHS = (1, 2, 17, 17, 64, 100, 255, 512)
ROW_TOKENS = 128
MIX_ROWS, MIX_BATCHES = 1024, (1, 16, 256)
"""Rows of real lengths, and how many of them a batch has."""
PEER_ROWS = 32
"""The largest batch of the peer: it sorts the rows of a larger one by length, so that little is padding."""

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """Device, shapes, and number of runs."""

    device: torch.device
    shape: Shape
    small: Shape
    batch_tokens: int
    times: int

    @property
    def full_batch(self) -> list[Encoding]:
        return rows(self.shape, [ROW_TOKENS] * (self.batch_tokens // ROW_TOKENS))

    @property
    def flop_per_token(self) -> int:
        """Of the matrix products and, for rows of 128 tokens, of the attention."""
        return self.flop([ROW_TOKENS]) // ROW_TOKENS

    def flop(self, lengths: Sequence[int]) -> int:
        """Of the matrix products and the attention of rows of these lengths."""
        weights, hidden = self.shape.num_layer_weights, self.shape.hidden_size
        return 2 * self.shape.num_layers * sum(each * (weights + 2 * each * hidden) for each in lengths)


def seconds(run: Callable[[], object], times: int) -> list[float]:
    """Of `times` runs, shortest first; two more before them do not count."""
    taken = []
    for _ in range(times + 2):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return sorted(taken[2:])


def release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def parity(setting: Setting) -> Figures:
    """Largest difference in float32, and least cosine of a row's first state otherwise."""
    make = partial(make_engine, setting.small, source=CPU)
    batch = [*rows(setting.small, PARITY_LENGTHS), *rows(setting.small, [40, 90, 40], (3, 5, 4))]
    wanted = make(CPU, "float32").run(batch)

    def found(precision: str, **how: Any) -> Figures:
        return difference(make(setting.device, precision, **how).run(batch), wanted)

    def by_graphs(*batches: slice, backend: str = "auto") -> Figures:
        engine = make(setting.device, "bfloat16", backend=backend)
        engine.warm_up()
        outputs = [output for some in batches for output in engine.run(batch[some])]
        return difference(outputs, wanted)

    figures: Figures = {}
    for precision in ("float32", "bfloat16"):
        for name in fitting(setting, setting.small, getattr(torch, precision)):
            figures[f"{name} {precision}"] = tried(partial(found, precision, backend=name))
    for quantization in QUANTIZATIONS:
        figures[quantization] = tried(partial(found, "bfloat16", quantization=quantization))
    alone, plain = [slice(row, row + 1) for row in range(len(batch))], len(PARITY_LENGTHS)
    figures["graphs, rows alone"] = tried(partial(by_graphs, *alone))
    for name in fitting(setting, setting.small, torch.bfloat16):
        if BACKENDS[name].recorded:
            halves = partial(by_graphs, slice(plain), slice(plain, None), backend=name)
            figures[f"graphs, {name}, plain rows and choices"] = tried(halves)
    return figures


def difference(outputs: Sequence[Output], wanted: Sequence[Output]) -> Figures:
    ours, theirs = (np.concatenate([each.scores for each in some]) for some in (outputs, wanted))
    cosines = (ours * theirs).sum(1) / (np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1))
    return {"max_difference": float(np.abs(ours - theirs).max()), "least_cosine": float(cosines.min())}


def fitting(setting: Setting, shape: Shape, dtype: torch.dtype) -> Mapping[str, Backend]:
    place = AttentionConfig(setting.device, dtype, shape.num_heads, shape.head_size)
    return {name: backend for name, backend in BACKENDS.items() if backend.runs_on(place)}


def tried(measure: Callable[[], Any]) -> Any:
    """The figures, or the error: what one backend or one part lacks does not lose the others."""
    try:
        return measure()
    except Exception as error:  # noqa: BLE001 - whatever a compiler or a kernel raises
        return f"failed: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def attention(setting: Setting) -> Figures:
    """Milliseconds of the attention of all layers of one batch, launched one by one and replayed as a graph.

    Launched: what is made once for a batch included, as the choice of a backend measures it. The graph has the kernels
    alone. In two batches: the typical one, with rows that have options, and its plain rows.
    """
    shape, dtype = setting.shape, torch.bfloat16
    plain, _ = TYPICAL.split()
    figures: Figures = {}
    for name, layout in {"typical": TYPICAL, "plain rows": Layout(plain.rows, bucket(plain.num_tokens))}.items():
        qkv = torch.randn(layout.num_tokens, 3, shape.num_heads, shape.head_size, device=setting.device, dtype=dtype)
        for kind, backend in fitting(setting, shape, dtype).items():
            make = partial(_make_attention, backend, layout, qkv, shape.num_layers)
            figures[f"{name}, {kind}"] = {
                "tokens": layout.num_tokens,
                "launched_ms": tried(partial(median_ms, launched(make, setting.device), setting.times)),
                "graph_ms": tried(partial(_graph_ms, make, setting)),
            }
    return figures


def _make_attention(backend: Backend, layout: Layout, qkv: torch.Tensor, num_layers: int) -> Call:
    return partial(attend_in_layers, backend.prepare(layout, qkv.device, qkv.dtype), qkv, num_layers)


@torch.inference_mode()
def _graph_ms(make: Callable[[], Call], setting: Setting) -> float:
    """Of the call that `make` makes. Raises what recording raises: a time of launches would say nothing here."""
    replay = CudaRecorder()(make()) if setting.device.type == "cuda" else make()
    return median_ms(launched(lambda: replay, setting.device), setting.times)


def median_ms(run: Callable[[], object], times: int) -> float:
    return 1000 * median(seconds(run, times))


def full_batches(setting: Setting) -> Figures:
    engine = make_engine(setting.shape, setting.device)
    started = time.perf_counter()
    engine.warm_up()
    warm_up_s = time.perf_counter() - started
    if setting.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(setting.device)
    taken = median(seconds(partial(engine.run, setting.full_batch), setting.times))
    tokens_per_s = setting.batch_tokens / taken
    engine_rate, bare_rate = tokens_per_s * setting.flop_per_token, matmul_rate(setting)
    return {
        "attention": engine.backend,
        "warm_up_s": warm_up_s,
        "tokens": setting.batch_tokens,
        "ms": 1000 * taken,
        "tokens_per_s": tokens_per_s,
        "engine_tflops": engine_rate / 1e12,
        "bare_bf16_matmul_tflops": bare_rate / 1e12,
        "share_of_bare_matmul": engine_rate / bare_rate,
        **memory(engine),
    }


def matmul_rate(setting: Setting) -> float:
    """Operations per second of the best of some square products in bf16, ten of which are launched together."""

    def rate(size: int) -> float:
        a, b = (torch.randn(size, size, device=setting.device, dtype=torch.bfloat16) for _ in range(2))

        def multiply() -> None:
            for _ in range(10):
                a @ b
            if setting.device.type == "cuda":
                torch.cuda.synchronize(setting.device)

        return 10 * 2 * size**3 / median(seconds(multiply, setting.times))

    return max(map(rate, (4096, 8192) if setting.device.type == "cuda" else (256,)))


def memory(engine: Engine) -> Figures:
    """Peak of what torch held on the GPU while full batches ran, against the weights."""
    if engine.device.type != "cuda":
        return {}
    gib = 2**30
    weights = 2 * engine.shape.num_parameters
    peak, reserved = torch.cuda.max_memory_allocated(engine.device), torch.cuda.max_memory_reserved(engine.device)
    return {
        "weights_gib": weights / gib,
        "peak_gib": peak / gib,
        "reserved_gib": reserved / gib,
        "peak_over_weights": peak / weights,
        "reserved_over_weights": reserved / weights,
    }


def latency(setting: Setting) -> Figures:
    """Milliseconds of a batch of one row, kernels launched one by one and as a graph: median and 99th percentile."""
    engine = make_engine(setting.shape, setting.device)
    figures: Figures = {}
    for way in ("eager", "graphs"):
        if way == "graphs":
            engine.warm_up()  # records them
        for name, batch in {
            "32 tokens": rows(setting.shape, [32]),
            "32 tokens, choice": rows(setting.shape, [32], (4, 5, 4)),
            "16 rows of 31": rows(setting.shape, [31] * 16),
        }.items():
            taken = seconds(partial(engine.run, batch), 10 * setting.times)
            figures[f"{way}, {name}"] = {"p50_ms": 1000 * median(taken), "p99_ms": 1000 * taken[len(taken) * 99 // 100]}
    return figures


def mix(setting: Setting) -> Figures:
    """Rows per second of real lengths: ours, and those of transformers' forward, eager and compiled, in turns.

    It gets the same batches: larger ones sorted by length and cut into smaller ones, each padded to its longest row.
    """
    engine = make_engine(setting.shape, setting.device)
    engine.warm_up()
    peers = {
        "transformers": make_eager(setting.shape, setting.device, engine.precision, is_compiled=False),
        "compiled": make_eager(setting.shape, setting.device, engine.precision, is_compiled=True),
    }
    batch, bare_rate = rows(setting.shape, draw_lengths(MIX_ROWS)), matmul_rate(setting)
    flop_per_row = setting.flop([row.num_tokens for row in batch]) / MIX_ROWS
    figures: Figures = {"mean_tokens": sum(row.num_tokens for row in batch) / MIX_ROWS}
    for num_rows in MIX_BATCHES:
        runs = {"ours": partial(engine_rows_per_s, engine, batch, num_rows, setting.times / 20)}
        runs |= {
            name: partial(peer_rows_per_s, peer, batch, num_rows, setting.times / 20) for name, peer in peers.items()
        }
        for run in runs.values():
            run()  # compiles
        rates = [{name: run() for name, run in runs.items()} for _ in range(3)]
        found = {name: median(turn[name] for turn in rates) for name in runs}
        figures[f"{num_rows} rows"] = {
            **{f"{name}_rows_per_s": rate for name, rate in found.items()},
            "over_the_better": median(turn["ours"] / max(turn[name] for name in peers) for turn in rates),
            "share_of_bare_matmul": found["ours"] * flop_per_row / bare_rate,
        }
    return figures


def peer_rows_per_s(peer: Forward, batch: Sequence[Encoding], num_rows: int, seconds: float) -> float:
    starts = cycle(range(0, len(batch), num_rows))
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        start = next(starts)
        some = sorted(batch[start : start + num_rows], key=lambda row: row.num_tokens)
        for first in range(0, len(some), PEER_ROWS):
            peer(some[first : first + PEER_ROWS])
        done += len(some)
    return done / (time.perf_counter() - started)


def quantized(setting: Setting) -> Figures:
    """Tokens per second of full batches and milliseconds of 32 tokens, and how near the outputs are to bf16's."""
    wanted = make_engine(setting.shape, setting.device).run(setting.full_batch)
    figures: Figures = {}
    for quantization in ("none", *QUANTIZATIONS):
        release(setting.device)
        figures[quantization] = tried(partial(_quantized, setting, quantization, wanted))
    return figures


def _quantized(setting: Setting, quantization: Quantization, wanted: Sequence[Output]) -> Figures:
    engine, batch = make_engine(setting.shape, setting.device, quantization=quantization), setting.full_batch
    engine.warm_up()
    taken = median(seconds(partial(engine.run, batch), setting.times))
    alone = median(seconds(partial(engine.run, rows(setting.shape, [32])), 5 * setting.times))
    return {
        "tokens_per_s": setting.batch_tokens / taken,
        "32_tokens_ms": 1000 * alone,
        **difference(engine.run(batch), wanted),
    }


def overlap(setting: Setting) -> Figures:
    """Tokens per second when each batch waits for the one before, and when it is given while that one runs."""
    engine = make_engine(setting.shape, setting.device)
    engine.warm_up()
    figures: Figures = {}
    for name, batch in {"full": setting.full_batch, "1024 tokens": rows(setting.shape, [32] * 32)}.items():
        tokens = sum(row.num_tokens for row in batch)
        alone = tokens / median(seconds(partial(engine.run, batch), setting.times))
        ahead = engine_rows_per_s(engine, batch, len(batch), setting.times / 10) * tokens / len(batch)
        figures[name] = {"alone_tokens_per_s": alone, "ahead_tokens_per_s": ahead, "gain": ahead / alone}
    return figures


def restart(setting: Setting) -> Figures:
    """Seconds from a new process to a warm engine, with nothing compiled and with what the first has left."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--warm-up", "--device", str(setting.device)]
    command += ["--tiny"] if setting.shape == TINY else []
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first_s", "second_s"):
            started = time.perf_counter()
            subprocess.run(command, check=True, env={**os.environ, COMPILED: folder}, stdout=subprocess.DEVNULL)
            figures[name] = time.perf_counter() - started
    return figures


def over_http(setting: Setting) -> Figures:
    """Rows per second of batched requests, and their share of the engine's: see `benchmarks.http.rates`."""
    from benchmarks.http import rates  # needs the packages of a server and a client; the other parts do not

    flags = ["--device", str(setting.device), "--shape", "1.3B", "--rounds", "5", "--seconds", "8"]
    if setting.shape == TINY:
        flags[2:] = ["--shape", "tiny", "--rounds", "2", "--seconds", "2"]
    return {f"{found.pop('row_tokens')} tokens": found for found in rates.measure(rates.parse(flags))}


PARTS: dict[str, Callable[[Setting], Figures]] = {
    "parity": parity,
    "full_batches": full_batches,
    "latency": latency,
    "mix": mix,
    "overlap": overlap,
    "quantized": quantized,
    "over_http": over_http,
    "restart": restart,
    "attention": attention,
}
"""In the order in which they are measured: the first ones count most where the time ends."""


def run_part(name: str, part: Callable[[Setting], Figures], setting: Setting) -> Figures:
    release(setting.device)
    started = time.perf_counter()
    found = tried(partial(part, setting))
    figures = {"failed": found.removeprefix("failed: ")} if isinstance(found, str) else found
    print(f"\n{name}")
    for key, value in figures.items():
        pairs = value if isinstance(value, dict) else {"": value}
        shown = {what: f"{number:.4g}" if isinstance(number, float) else number for what, number in pairs.items()}
        print(f"  {key:28}" + "".join(f"  {what} {number}" for what, number in shown.items()))
    print(f"  ({time.perf_counter() - started:.0f} s)", flush=True)
    return figures


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    device, is_tiny = torch.device(arguments.device), arguments.tiny
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            f"error: torch {torch.__version__} finds no GPU on this machine; `python -m service doctor` says why",
            file=sys.stderr,
        )
        return NO_GPU
    setting = Setting(
        device=device,
        shape=TINY if is_tiny else LARGE,
        small=TINY if is_tiny else SHAPES["narrow"],
        batch_tokens=1024 if is_tiny else arguments.batch_tokens,
        times=2 if is_tiny else arguments.times,
    )
    if arguments.warm_up:
        make_engine(setting.shape, device).warm_up()
        return 0
    arguments.machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(f"{arguments.machine}, torch {torch.__version__}")
    wanted = arguments.parts.split(",") if arguments.parts else list(PARTS)
    figures = measure(wanted, arguments, argv, setting)
    if not arguments.folder:
        name = re.sub(r"[^a-z0-9]+", "_", arguments.machine.lower())
        write(arguments.output / f"gpu_{name}.json", describe(figures, arguments, argv, setting))
    return int(any("failed" in part for part in figures.values()))


def measure(wanted: Sequence[str], arguments: argparse.Namespace, argv: Sequence[str], setting: Setting) -> Figures:
    """The figures of each part. With a folder, each is written to a file of its own before the next one starts."""
    started = time.perf_counter()
    figures: Figures = {}
    for number, part in enumerate(wanted, start=1):
        if time.perf_counter() - started > arguments.limit_s:
            figures[part] = {"failed": f"not started: {arguments.limit_s:g} s were over"}
        else:
            figures[part] = run_part(part, PARTS[part], setting)
        if arguments.folder:
            file = arguments.folder / f"{number}_{part}.json"
            write(file, describe({part: figures[part]}, arguments, argv, setting))
    return figures


def describe(figures: Figures, arguments: argparse.Namespace, argv: Sequence[str], setting: Setting) -> dict[str, Any]:
    """The document of some parts, with what they were measured on."""
    return {
        "what": "the engine, and the service around it, random weights, on one GPU: " + ", ".join(figures),
        **about(arguments, argv, "torch", method=METHOD, precision="bfloat16 unless named"),
        "times": setting.times,
        "cuda": torch.version.cuda,
        "num_layers": setting.shape.num_layers,
        "hidden_size": setting.shape.hidden_size,
        "figures": figures,
    }


def write(file: Path, document: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten: {file}", flush=True)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("gpu", __doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and few runs, to check that all parts run")
    parser.add_argument("--parts", default="", help=f"of {','.join(PARTS)}; default: all")
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--times", type=int, default=20, help="runs of each measurement")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON file")
    parser.add_argument("--folder", type=Path, help="write one file for each part into this folder instead")
    parser.add_argument(
        "--limit-s", type=float, default=float("inf"), help="start no part after this time (default: none)"
    )
    parser.add_argument("--warm-up", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
