"""Measures what the service costs around its engine, and where its one Python process saturates.

    python -m benchmarks.front --json benchmarks/results/front.json --profile benchmarks/results/front_profile.txt

Throughput: a service whose engine does nothing (`benchmarks.front_server`) under a closed loop of distinct texts, each
a row of 32 tokens. Overhead: the same service with `mini` computed, one client; beside it, in this process, the bare
`Engine.run` of the same rows, in turns. `--other` measures a second checkout of the service, in turns with this one.
"""

from __future__ import annotations

import argparse
import signal
import statistics
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import uvloop
from tqdm import tqdm

from benchmarks.about import about, auto_precision, parser_of, save
from benchmarks.front_client import LABELS, Caller, Server, make_texts, messages_of, serving, throughput
from benchmarks.front_stages import stages_us
from service.checkpoints.checkpoint import Checkpoint, parse_spec, resolve
from service.commands.models import SHIPPED, locate_shipped
from service.domain import Encoding
from service.engine.engine import Engine
from service.tasks.classification import CLASSIFY, ClassifyQuery, Text
from service.tasks.text_model import TextModel

ROOT = Path(__file__).parent.parent
THIS = "this"
LOADS = tuple((inputs, clients) for inputs in (1, 32) for clients in (1, 8, 32, 128))
PACKAGES = ("fastapi", "uvicorn", "uvloop", "pydantic", "tokenizers", "torch")
TURNS = 3
OVERHEAD_TURNS = 40
OVERHEAD_ROWS = 32
"""Requests, then bare runs, in one turn."""

H100_FLOPS = 989e12
H100_SHARE = 0.6
ROW_FLOP = 77e9
H100_ROWS_PER_S = H100_SHARE * H100_FLOPS / ROW_FLOP
"""Rows of 32 tokens of the 1.3B model: the rated dense bf16 speed, and the share of it that is aimed at."""

METHOD = (
    "Closed loop on loopback, kept-alive connections, /v1/classify with two labels, every input a distinct row of 32 "
    "tokens. throughput: the engine answers at once; medians over the turns; parent_cpu_ms and child_cpu_ms are CPU "
    "time for each request. overhead: mini computed with one thread, one client; turns of requests and of bare "
    "Engine.run calls with the same rows in the client's process; over_bare_ms is the difference of the medians, "
    "over_compute_ms the median of a round trip minus its own Server-Timing compute."
)


def main() -> None:
    arguments = _parse()
    checkpoint = resolve(locate_shipped(parse_spec(SHIPPED)))
    model = TextModel.load(checkpoint)
    texts = make_texts(model)
    folders = {THIS: ROOT, **arguments.other}
    report: dict[str, Any] = {
        "what": "what the service costs around its engine",
        **about("front", __doc__, arguments.machine, *PACKAGES, method=METHOD),
        "precision_of_overhead": auto_precision(),
        "turns": TURNS,
        "seconds_of_a_turn": arguments.seconds,
        "throughput": _throughputs(folders, texts, arguments),
        "overhead": _overheads(folders, checkpoint, model, texts[:OVERHEAD_ROWS]),
    }
    report["stages_us"] = {f"{inputs} inputs": stages_us(model, texts[:inputs]) for inputs in (1, 32)}
    report["saturation"] = _saturation(report["throughput"])
    _print(report)
    save(report, arguments.json)


def _throughputs(folders: dict[str, Path], texts: list[str], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One entry for each load and checkout; the checkouts take turns."""
    entries = []
    with ExitStack() as stack:
        profile = ["--profile", str(arguments.profile.absolute())] if arguments.profile else []
        servers = [
            stack.enter_context(serving(name, folder, *(profile if name == THIS else [])))
            for name, folder in folders.items()
        ]
        for inputs, clients in tqdm(LOADS, "loads"):
            messages = messages_of(texts, inputs)
            turns: dict[str, list[dict[str, float]]] = {server.name: [] for server in servers}
            for _ in range(TURNS):
                for server in servers:
                    turns[server.name].append(uvloop.run(throughput(server, messages, clients, arguments.seconds)))
            entries += [_entry(name, inputs, clients, found) for name, found in turns.items()]
        if arguments.profile:
            _profile(servers[0], messages_of(texts, 1))
    return entries


def _entry(name: str, inputs: int, clients: int, turns: list[dict[str, float]]) -> dict[str, Any]:
    medians = {key: round(statistics.median(turn[key] for turn in turns), 3) for key in turns[0]}
    rates = [round(turn["requests_per_s"], 1) for turn in turns]
    more = {"inputs_per_s": round(inputs * medians["requests_per_s"], 1), "requests_per_s_of_turns": rates}
    return {"service": name, "inputs": inputs, "clients": clients, **medians, **more}


def _profile(server: Server, messages: list[bytes]) -> None:
    """After the timings: a profile costs more than what it shows."""
    server.process.send_signal(signal.SIGUSR1)
    uvloop.run(throughput(server, messages, 32, 5.0))
    server.process.send_signal(signal.SIGUSR2)
    uvloop.run(throughput(server, messages, 1, 0.1))  # written when the server answers again


def _overheads(
    folders: dict[str, Path], checkpoint: Checkpoint, model: TextModel, texts: list[str]
) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    engine = Engine.load(checkpoint)
    engine.warm_up()
    query = ClassifyQuery(tuple(map(Text, texts)), LABELS)
    rows, messages = CLASSIFY.encode(model, query), messages_of(texts, 1)
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(name, folder, "--real")) for name, folder in folders.items()]
        callers = {server.name: Caller(server.port) for server in servers}
        bare: list[float] = []
        calls: dict[str, list[tuple[float, float]]] = {name: [] for name in callers}
        for turn in tqdm(range(OVERHEAD_TURNS + 1), "overhead"):
            found = {name: [caller.call(message) for message in messages] for name, caller in callers.items()}
            runs = [_bare(engine, row) for row in rows]
            if turn:  # the first one warms
                bare += runs
                for name, pairs in found.items():
                    calls[name] += pairs
    return [_overhead(name, pairs, bare if name == THIS else []) for name, pairs in calls.items()]


def _bare(engine: Engine, row: Encoding) -> float:
    started = perf_counter()
    engine.run([row])
    return perf_counter() - started


def _overhead(name: str, calls: list[tuple[float, float]], bare: list[float]) -> dict[str, Any]:
    """The bare engine is this checkout's, and compared with nothing else."""
    trips, computes = zip(*calls, strict=True)
    trip = statistics.median(trips)
    medians = {
        "round_trip_p50_ms": trip,
        "compute_p50_ms": statistics.median(computes),
        "over_compute_ms": statistics.median(trip - compute for trip, compute in calls),
        **({"bare_p50_ms": (once := statistics.median(bare)), "over_bare_ms": trip - once} if bare else {}),
    }
    return {"service": name, "requests": len(calls), **{key: round(1000 * s, 3) for key, s in medians.items()}}


def _saturation(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The best of this checkout against what one GPU could take; `a_core` is what a core of the parent's own gives."""
    best = {}
    for inputs in (1, 32):
        mine = [entry for entry in entries if (entry["service"], entry["inputs"]) == (THIS, inputs)]
        measured = max(entry["inputs_per_s"] for entry in mine)
        a_core = max(1000 * inputs / entry["parent_cpu_ms"] for entry in mine)
        best[f"{inputs} inputs"] = {
            "inputs_per_s": round(measured),
            "inputs_per_s_of_a_core": round(a_core),
            "share_of_h100": round(measured / H100_ROWS_PER_S, 2),
            "share_of_h100_of_a_core": round(a_core / H100_ROWS_PER_S, 2),
        }
    assumed = f"{ROW_FLOP / 1e9:.0f} GFLOP a row, {H100_SHARE:.0%} of {H100_FLOPS / 1e12:.0f} TFLOP/s dense bf16"
    return {"h100_rows_per_s": round(H100_ROWS_PER_S), "assumed": assumed, "best": best}


def _print(report: dict[str, Any]) -> None:
    for entry in report["throughput"]:
        print(
            f"{entry['service']:8} {entry['inputs']:3} inputs {entry['clients']:4} clients"
            f" {entry['requests_per_s']:9.1f} requests/s {entry['inputs_per_s']:9.1f} inputs/s"
            f"  p50 {entry['p50_ms']:8.2f} p99 {entry['p99_ms']:8.2f} ms"
            f"  parent {entry['parent_cpu_ms']:.3f} child {entry['child_cpu_ms']:.3f} ms"
        )
    for entry in report["overhead"]:
        print(" ".join(f"{key} {value}" for key, value in entry.items()))
    for inputs, steps in report["stages_us"].items():
        print(inputs, *(f"{name} {us} us" for name, us in steps.items()), sep=", ")
    print(report["saturation"])


def _parse() -> argparse.Namespace:
    parser = parser_of("front", __doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one turn of one load (default: %(default)s)")
    other = "a second checkout, with these benchmarks, to compare with"
    parser.add_argument("--other", type=_named_folder, default={}, metavar="NAME=FOLDER", help=other)
    parser.add_argument("--profile", type=Path, help="write a profile of the parent's event loop there")
    return parser.parse_args()


def _named_folder(text: str) -> dict[str, Path]:
    name, _, folder = text.partition("=")
    return {name: Path(folder)}


if __name__ == "__main__":
    main()
