"""Measures the anonymous memory that loading a 1.3B-shaped fp32 `.bin` into bfloat16 takes at its peak.

    python -m benchmarks.engine memory --folder FOLDER --json benchmarks/results/load_memory.json

Writes a checkpoint of random numbers (5.03 GB on disk, and in memory while it is written) in the upstream layout, loads
it in a fresh process that samples its own RssAnon (/proc/self/status) every 2 ms, and once more in one that converts it
for the cache first; compares the peaks with the limit of 1.3 times the bfloat16 weights plus 500 MB, and removes the
files (7.8 GB). Ends with status 1 when a peak is above the limit.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from benchmarks.common import about, parser_of, save
from benchmarks.engine.models import FILES, LARGE, scratch, write_checkpoint
from service.checkpoints.checkpoint import describe
from service.engine.engine import Engine

SAMPLE_S = 0.002
MB = 1e6


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    with scratch(arguments.folder) as folder:
        write_checkpoint(folder, replace(LARGE, num_layers=arguments.layers))
        measured = _in_fresh_process(folder, None)
        converting = _in_fresh_process(folder, folder / "cache")
        measured["converting_rss_anon_peak_bytes"] = converting["rss_anon_peak_bytes"]
    return _report(measured, arguments, argv)


def measure(folder: Path, cache: Path | None) -> dict[str, float]:
    """Loads the checkpoint in this process, sampling RssAnon meanwhile."""
    checkpoint = describe(folder, "load-memory")
    before = _rss_anon()
    peak = before
    is_done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not is_done.wait(SAMPLE_S):
            peak = max(peak, _rss_anon())

    sampler = threading.Thread(target=sample)
    sampler.start()
    started = time.perf_counter()
    totals: list[int] = []
    Engine.load(checkpoint, precision="bfloat16", progress=lambda _, total: totals.append(total), weight_cache=cache)
    load_s = time.perf_counter() - started
    is_done.set()
    sampler.join()
    after = _rss_anon()
    return {
        "file_bytes": (folder / FILES["bin"]).stat().st_size,
        "weights_bytes": totals[-1],
        "rss_anon_before_bytes": before,
        "rss_anon_peak_bytes": max(peak, after),
        "rss_anon_after_bytes": after,
        "load_s": round(load_s, 2),
    }


def _in_fresh_process(folder: Path, cache: Path | None) -> dict[str, float]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, folder, cache).result()


def _report(measured: dict[str, float], arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    limit = 1.3 * measured["weights_bytes"] + 500 * MB
    peak = max(measured["rss_anon_peak_bytes"], measured["converting_rss_anon_peak_bytes"])
    for name, value in {**measured, "limit_bytes": limit}.items():
        print(f"{name:32}{value / MB:12.1f} MB" if name.endswith("_bytes") else f"{name:32}{value:12.2f}")
    print(f"{'peak / limit':32}{peak / limit:12.3f}")
    result = {
        "what": "peak RssAnon while Engine.load reads a 1.3B-shaped fp32 .bin into bfloat16 on a CPU",
        **about(arguments, argv, "torch", precision="bfloat16"),
        **measured,
        "limit_bytes": round(limit),
        "fits": peak <= limit,
    }
    save(result, arguments.json)
    return 0 if peak <= limit else 1


def _rss_anon() -> int:
    _, _, rest = Path("/proc/self/status").read_text().partition("RssAnon:")
    return int(rest.split()[0]) * 1024


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("engine memory", __doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for 8 GB; made for the run, then removed")
    parser.add_argument("--layers", type=int, default=LARGE.num_layers, help="24 are 1.3 billion parameters")
    return parser.parse_args(argv)
