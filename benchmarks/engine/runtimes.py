"""Measures the engine against ONNX Runtime and OpenVINO at equal precision, without HTTP.

    python -m benchmarks.engine runtimes --json benchmarks/results/runtimes.json
    python -m benchmarks.engine runtimes --model mini e5-small 110M --rounds 5

Every model is exported with `python -m service export --to onnx` (requirements/export.txt); the runtimes are in an
environment of their own, .peers/runtimes. OpenVINO computes in float32, in bfloat16 by INFERENCE_PRECISION_HINT where
the CPU has it, and in int8 with static scales by nncf, which leaves the rest in bfloat16 where the CPU has it; ONNX
Runtime in float32 and in int8 with dynamic scales. Before the clock runs, the outputs of all are compared with the
engine's in float32.

The engine has the environment of a worker process of the server. The same rows for all, lengths lognormal (median 31
tokens, 95 % below 152): one row at a time, and in batches of 16 in the order in which they come, which the runtimes pad
to the longest row and the engine packs. In every round all compute the rows in turns of 16, in another order each time:
what slows the machine for a second slows all of them. Ratios are of one round, of the sums of its turns; their median
and the interval that holds the true median with at least 95 % probability (order statistics, from 6 rounds on) are
shown, by the clock and by CPU seconds. On a machine that others use, with one thread, the CPU seconds are the better
measure. `best` is the better runtime in the same round and precision: for one row at a time of those that do the same,
for batches of 16 of both ways, as padding makes batches slower than single rows. Before each turn is a pause, after
which no thread of the one before takes a core any more.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from math import comb
from pathlib import Path
from statistics import median
from typing import Any, TypeVar, cast

import numpy as np
import torch

from benchmarks.common import about, as_worker, auto_precision, parser_of, save
from benchmarks.engine.models import LENGTHS, SHAPES
from benchmarks.peers import processes
from benchmarks.peers.checkpoint import make_checkpoint
from benchmarks.peers.exported import ENVIRONMENT, SERVERS, encode, export, save_batches
from benchmarks.peers.rounds import make_texts
from service.checkpoints.checkpoint import Checkpoint, describe, resolve
from service.checkpoints.spec import parse_spec
from service.commands.models import SHIPPED, locate_shipped
from service.domain import Encoding, FloatArray
from service.engine.engine import Engine
from service.tasks.sample_rows import sample_rows
from service.tasks.text_model import TextModel
from service.tools.export.onnx_file import largest_difference, run_engine

T = TypeVar("T")

RANDOM = ("small", "110M", "330M", "1.3B")
BATCH_ROWS = (1, 16)
PART_ROWS = BATCH_ROWS[-1]
"""The rows are computed in parts of so many, so that the contenders take turns of a moment."""
PRECISIONS = ("float32", "bfloat16", "int8")
RUNTIMES = {"onnxruntime": ("float32", "int8"), "openvino": PRECISIONS}
LIMITS = {"float32": 1e-3, "bfloat16": 0.1, "int8": 0.25}
"""The largest difference from the engine in float32, as a share of the largest number."""
CONFIDENCE = 0.95
_SETTLING_SECONDS = 0.1
"""ONNX Runtime's threads, if there are several, keep a core busy for some 60 ms after a run."""
ENGINE = "engine"
BEST = "best"


@dataclass(frozen=True, slots=True)
class Seconds:
    clock: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.clock + other.clock, self.cpu + other.cpu)


Run = Callable[[int, int], Seconds]
"""Computes the rows of a part in batches of so many."""


@dataclass(frozen=True, slots=True)
class Contender:
    """An engine in one precision."""

    name: str
    precision: str
    run: Run


Key = tuple[str, str, int]
"""Name, precision and rows of a batch."""
Round = Mapping[Key, Seconds]


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    as_worker(arguments.threads)
    torch.set_num_threads(arguments.threads)
    python = processes.ensure(ENVIRONMENT)
    document = {
        "what": "rows per second of the engine, of ONNX Runtime and of OpenVINO, at equal precision, without HTTP",
        **about(arguments, argv, "torch", "numpy"),
        "versions_of_runtimes": processes.versions(python, ("onnxruntime", "openvino", "nncf")),
        **{name: getattr(arguments, name) for name in ("threads", "rounds")},
        "models": [measure(model, python, arguments) for model in arguments.model],
    }
    save(document, arguments.json)
    return 0


def measure(model: str, python: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    checkpoint, source = find_checkpoint(model)
    folder = export(checkpoint, source, python, LENGTHS, has_int8="int8" in arguments.precision)
    rows = encode(checkpoint, make_texts(LENGTHS, arguments.rows, seed=1))
    parts = in_parts(rows)
    compared = parts[0]
    expected = run_engine(checkpoint, compared)
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for number, size in product(range(len(parts)), BATCH_ROWS):
            save_batches(_file(scratch, number, size), checkpoint, parts[number], size)
        precisions = [each for each in arguments.precision if each != "bfloat16" or auto_precision() == each]
        engines = {each: _load(checkpoint, each) for each in precisions}
        contenders = [Contender(ENGINE, each, time_rows(engine, parts)) for each, engine in engines.items()]
        differences = {}
        for runtime, supported in RUNTIMES.items():
            for precision in (each for each in supported if each in precisions):
                name = f"{runtime} {precision}"
                command = [python, SERVERS / "runtime_engine.py", runtime, folder, precision, str(arguments.threads)]
                try:
                    theirs = stack.enter_context(process(command, name, arguments.threads))
                    difference = largest_difference(checkpoint, compared, _save(theirs, scratch), expected)
                    differences[name] = _require_equal(difference, precision)
                except RuntimeError as error:
                    left_out[name] = str(error)
                else:
                    contenders.append(Contender(runtime, precision, _theirs(theirs, scratch)))
        rounds = list(race(contenders, arguments.rounds, len(parts)))
    result = {
        "model": model,
        "rows": len(rows),
        "tokens": sum(row.num_tokens for row in rows),
        "runtimes_of_engine": {each: engine.arithmetic.runtime for each, engine in engines.items()},
        "difference_from_engine_in_float32": differences,
        "left_out": left_out,
        **summarize(rounds, len(rows)),
    }
    print(table(result))
    return result


def find_checkpoint(model: str) -> tuple[Checkpoint, str | Path]:
    if model in RANDOM:
        name = "checkpoint" if model == "small" else f"checkpoint-{model}"  # the small one is what the servers serve
        folder = make_checkpoint(processes.FOLDER.absolute() / name, SHAPES[model])
        return describe(folder, name), folder
    return resolve(locate_shipped(parse_spec(model))), model


def in_parts(rows: Sequence[T]) -> list[Sequence[T]]:
    return [rows[start : start + PART_ROWS] for start in range(0, len(rows), PART_ROWS)]


def _file(folder: Path, part: int, batch_rows: int) -> Path:
    return folder / f"part-{part}-batches-of-{batch_rows}.npz"


def _load(checkpoint: Checkpoint, precision: str) -> Engine:
    """As it is served: in the faster runtime, and int8 with scales that are measured on texts."""
    quantization: Any = "int8" if precision == "int8" else "none"
    engine = Engine.load(
        checkpoint,
        precision="auto" if precision == "int8" else precision,
        runtime="auto",
        quantization=quantization,
        sample_rows=lambda: sample_rows(TextModel.load(checkpoint)),
    )
    engine.warm_up()
    return engine


def time_rows(engine: Engine, parts: Sequence[Sequence[Encoding]]) -> Run:
    def run(part: int, batch_rows: int) -> Seconds:
        rows = parts[part]
        clock, cpu = time.perf_counter(), time.process_time()
        for start in range(0, len(rows), batch_rows):
            engine.run(rows[start : start + batch_rows])
        return Seconds(time.perf_counter() - clock, time.process_time() - cpu)

    return run


class Process:
    """A runtime in its own environment, asked by lines."""

    def __init__(self, process: subprocess.Popen[str], name: str) -> None:
        self._process = process
        self._name = name

    def read(self) -> dict[str, Any]:
        """RuntimeError with what it reports, or when it has ended."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": f"{self._name} has ended"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def ask(self, *words: str | Path) -> dict[str, Any]:
        assert self._process.stdin
        print(*words, sep="\t", file=self._process.stdin, flush=True)
        return self.read()


@contextmanager
def process(command: Sequence[str | Path], name: str, threads: int, **variables: str) -> Iterator[Process]:
    """RuntimeError when it does not load the model."""
    environment, pipe = processes.environment(threads) | variables, subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as started:
        try:
            found = Process(started, name)
            found.read()
            yield found
        finally:
            started.kill()


def _theirs(runtime: Process, folder: Path) -> Run:
    def run(part: int, batch_rows: int) -> Seconds:
        answer = runtime.ask("run", _file(folder, part, batch_rows))
        return Seconds(answer["seconds"], answer["cpu_seconds"])

    return run


def _save(runtime: Process, folder: Path) -> FloatArray:
    """What it computes of the first batch."""
    output = folder / "output.npy"
    runtime.ask("save", _file(folder, 0, BATCH_ROWS[-1]), output)
    return cast("FloatArray", np.load(output))


def _require_equal(difference: float, precision: str) -> float:
    """RuntimeError where the outputs are another model's."""
    if not difference <= LIMITS[precision]:
        raise RuntimeError(f"differs from the engine by {difference:.2g}; wanted at most {LIMITS[precision]}")
    return round(difference, 6)


def race(contenders: Sequence[Contender], rounds: int, num_parts: int) -> Iterator[Round]:
    """A first round warms all up and does not count."""
    for number in range(rounds + 1):
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
        found: dict[Key, Seconds] = {}
        for part, size in product(range(num_parts), BATCH_ROWS):
            first = (number + part) % len(contenders)
            for each in (*contenders[first:], *contenders[:first]):
                time.sleep(_SETTLING_SECONDS)
                key = each.name, each.precision, size
                found[key] = found.get(key, Seconds()) + each.run(part, size)
        if number:
            yield found


def summarize(rounds: Sequence[Round], num_rows: int) -> dict[str, Any]:
    """Rates of all, and the ratios of ours."""
    keys = sorted(rounds[0], key=lambda key: (key[0] != ENGINE, key[0], PRECISIONS.index(key[1]), key[2]))
    rates = [
        {
            "who": name,
            "precision": precision,
            "batch_rows": size,
            "rows_per_s": round(num_rows / median(each[name, precision, size].clock for each in rounds), 2),
            "rows_per_cpu_s": round(num_rows / median(each[name, precision, size].cpu for each in rounds), 2),
        }
        for name, precision, size in keys
    ]
    ours = [key for key in keys if key[0] == ENGINE]
    return {"rates": rates, "ratios": [ratio for key in ours for ratio in _ratios(key, keys, rounds)]}


def _ratios(own: Key, keys: Sequence[Key], rounds: Sequence[Round]) -> Iterator[dict[str, Any]]:
    """Over each runtime in the same precision and way, and over the best of them."""
    _, precision, size = own
    rivals = [key for key in keys if key[0] != ENGINE and key[1] == precision]
    groups = {key[0]: [key] for key in rivals if key[2] == size}
    groups[BEST] = [key for key in rivals if key[2] <= size]
    for name, group in groups.items():
        if group:
            ratios = {
                measure: interval(
                    [min(getattr(each[key], measure) for key in group) / getattr(each[own], measure) for each in rounds]
                )
                for measure in ("clock", "cpu")
            }
            yield {"precision": precision, "batch_rows": size, "over": name, **ratios}


def interval(values: Sequence[float]) -> list[float]:
    """The median between two order statistics that hold the true one with 95 % probability, or between least and
    greatest where the values are too few for that."""
    ordered, num = sorted(values), len(values)
    rank = 0  # what lies outside of ranks 0 and num - 1 has a probability of 2 / 2**num
    while rank + 1 < num // 2 and 2 * sum(comb(num, low) for low in range(rank + 2)) / 2**num <= 1 - CONFIDENCE:
        rank += 1
    return [round(each, 3) for each in (ordered[rank], median(ordered), ordered[num - 1 - rank])]


def table(result: Mapping[str, Any]) -> str:
    lines = [f"{result['model']}: rows/s by the clock and by CPU seconds"]
    for each in result["rates"]:
        name = f"{each['who']} {each['precision']}, {each['batch_rows']} a batch"
        lines.append(f"{name:36}{each['rows_per_s']:9.2f}{each['rows_per_cpu_s']:9.2f}")
    lines.append("the engine over a runtime: median (interval) by the clock, by CPU seconds")
    for each in result["ratios"]:
        name = f"{each['precision']}, {each['batch_rows']} a batch, over {each['over']}"
        cells = [f"{mid:.2f} ({low:.2f} to {high:.2f})" for low, mid, high in (each["clock"], each["cpu"])]
        lines.append(f"{name:42}{cells[0]:24}{cells[1]}")
    lines += [f"{name} is left out: {reason}" for name, reason in result["left_out"].items()]
    return "\n".join(lines)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("engine runtimes", __doc__)
    choices = (*RANDOM, *SHIPPED)
    parser.add_argument(
        "--model",
        nargs="+",
        choices=choices,
        default=["small"],
        help="shapes of random numbers, or models that ship (default: small)",
    )
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=PRECISIONS,
        default=PRECISIONS,
        help="without bfloat16 where the CPU has none (default: all). One at a time where all do not fit into memory",
    )
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=11, help="(default: %(default)s)")
    parser.add_argument("--rows", type=int, default=48, help="(default: %(default)s)")
    return parser.parse_args(argv)
