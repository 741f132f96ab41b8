"""Measures how long the server takes from its start to ready, against reading its weights once from a cold disk.

    python -m benchmarks.engine start --folder FOLDER --json benchmarks/results/startup.json
    python -m benchmarks.engine start --folder FOLDER --formats safetensors --other CHECKOUT

Writes the 1.3B shape with random float32 weights as `.bin`, then as safetensors (5 GB each, and the cache of 2.5 GB
next to them), starts the real server on them and removes them: about 5 minutes. Each is started for the first time,
which converts it, then again from the cache, then without a cache.

Start to ready: from the start of the process `python -m service serve` to the first 200 of /readyz, polled every 10 ms.
Reading: `cat FILE > /dev/null`. The file leaves the page cache before each (posix_fadvise DONTNEED after fsync);
readings and starts alternate; medians, and the ratio to the quickest reading, as a disk is noisy. --other starts
another checkout before or after each start of this one, by turns, from the same files. Phases are between log lines of
the server: begin (imports), fetch (vocabulary, the rest of the child's imports), convert (read, arrange, write), read
(weights that are not mapped), try (warm-up).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, about, auto_precision, parser_of, save
from benchmarks.engine.models import FILES, LARGE, scratch, write_checkpoint
from tests.support.servers import Server

POLL_S = 0.01
TARGET = 2.2

PHASES = {
    "starting": "begin_s",
    "reading weights": "fetch_s",
    "weights converted": "convert_s",
    "weights mapped": "fetch_s",
    "model loaded": "read_s",
    "replica ready": "try_s",
}
"""The log line that ends a phase, and the phase; one may come twice."""


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    with scratch(arguments.folder) as folder:
        cases = measure(folder, arguments)
    report = {
        "what": "cold start to ready of the 1.3B shape",
        **about(arguments, argv, "torch", precision=auto_precision()),
        "target": f"ready_over_quickest_read of the cached file at most {TARGET}",
        "cases": cases,
    }
    print(_table(cases))
    save(report, arguments.json)
    return 0


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    cases = {}
    for kind in arguments.formats:
        weights = write_checkpoint(folder / kind, replace(LARGE, num_layers=arguments.layers), kind)
        cache = folder / f"cache-{kind}"
        cases[f"{kind}, first start"] = _case(weights, str(cache), [], 1, None)
        cached = list(cache.glob("*.safetensors"))
        cases[f"{kind}, cached"] = _case(weights, str(cache), cached, arguments.runs, arguments.other)
        if not arguments.cached_only:
            cases[f"{kind}, no cache"] = _case(weights, "off", [], arguments.runs, arguments.other)
        shutil.rmtree(weights.parent)
        shutil.rmtree(cache, ignore_errors=True)  # a small model is not kept
    return cases


def _case(weights: Path, cache: str, cached: list[Path], runs: int, other: Path | None) -> dict[str, Any]:
    """Serves the folder of `weights`; `cached` is the file that such a start reads instead, if any."""
    reads: dict[Path, list[float]] = {file: [] for file in (weights, *cached)}
    starts: list[dict[str, float]] = []
    others: list[dict[str, float]] = []
    for number in range(runs):
        for file, seconds in reads.items():
            _drop(file)
            seconds.append(_read_s(file))
        turns = [(starts, ROOT), *([(others, other)] if other else [])]
        for found_starts, checkout in turns[:: -1 if number % 2 else 1]:
            _drop(*reads)
            found_starts.append(_start(weights.parent, cache, checkout))
    ready_s = statistics.median(start["ready_s"] for start in starts)
    found = [
        {
            "bytes": file.stat().st_size,
            "read_s": round(statistics.median(seconds), 2),
            "ready_over_read": round(ready_s / statistics.median(seconds), 2),
            "ready_over_quickest_read": round(ready_s / min(seconds), 2),
            "reads_s": [round(each, 2) for each in seconds],
        }
        for file, seconds in reads.items()
    ]
    cache_read = found[1] if cached else None
    case = {"ready_s": round(ready_s, 2), "checkpoint": found[0], "cache": cache_read, "starts": starts}
    if others:
        pairs = zip(starts, others, strict=True)
        case["ready_over_other"] = sorted(round(mine["ready_s"] / theirs["ready_s"], 3) for mine, theirs in pairs)
        case["other_starts"] = others
    return case


def _drop(*files: Path) -> None:
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_s(file: Path) -> float:
    started = time.perf_counter()
    subprocess.run(["cat", str(file)], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def _start(model: Path, cache: str, checkout: Path) -> dict[str, float]:
    """Seconds until ready, and of the phases on the way."""
    with tempfile.TemporaryDirectory() as folder:
        words = ("--model", f"big={model}", "--weight-cache-dir", cache, "--log-format", "json")
        server = Server(Path(folder) / "log", words, folder=checkout)
        began, started = time.time(), time.perf_counter()
        server.spawn()
        server.await_ready(poll_s=POLL_S)
        ready_s = time.perf_counter() - started
        server.stop()
        lines = server.log.read_text(encoding="utf-8")
    return {"ready_s": round(ready_s, 2), **_phases(lines, began)}


def _phases(lines: str, began: float) -> dict[str, float]:
    phases: dict[str, float] = {}
    before = began
    for line in map(json.loads, filter(lambda line: line.startswith("{"), lines.splitlines())):
        if phase := PHASES.get(line["message"]):
            ended = datetime.fromisoformat(line["time"]).timestamp()
            phases[phase] = round(phases.get(phase, 0.0) + ended - before, 2)
            before = ended
    return phases


def _table(cases: dict[str, dict[str, Any]]) -> str:
    lines = [f"{'case':24}{'ready s':>9}{'quickest read s':>17}{'ratio':>7}  phases of the last start"]
    for name, case in cases.items():
        phases = " ".join(f"{key}={value:g}" for key, value in case["starts"][-1].items() if key != "ready_s")
        read = case["cache"] or case["checkpoint"]
        quickest, ratio = min(read["reads_s"]), read["ready_over_quickest_read"]
        lines.append(f"{name:24}{case['ready_s']:9.2f}{quickest:17.2f}{ratio:7.2f}  {phases}")
        if "ready_over_other" in case:
            lines.append(f"{'':24}over the other checkout: {case['ready_over_other']}")
    return "\n".join(lines)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("engine start", __doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for 8 GB; made for the run, then removed")
    parser.add_argument("--layers", type=int, default=LARGE.num_layers, help="24 are 1.3 billion parameters")
    parser.add_argument("--runs", type=int, default=3, help="of each case but the first")
    parser.add_argument("--formats", nargs="+", choices=tuple(FILES), default=tuple(FILES), help="(default: all)")
    parser.add_argument("--cached-only", action="store_true", help="no starts without a cache")
    parser.add_argument("--other", type=Path, metavar="FOLDER", help="a second checkout to compare with")
    return parser.parse_args(argv)
