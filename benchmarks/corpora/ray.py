"""How much of the rate of two batch jobs on one machine two actors on Ray keep.

    python -m benchmarks.corpora ray --json benchmarks/results/corpora_ray.json      (requirements/ray.txt)

The contenders are two runs of `python -m service batch` at the same time, and one run with `--ray` on a
cluster of two nodes on this machine, each with one CPU, all of them with one thread a replica. In each round both
compute as many rows, `--rows` for each worker. The rate is that of the parts that are done after the first ones, so
that starts do not count. `of_two_runs` is the rate on Ray over the sum of those of the two runs. Ray's own processes
share the two cores with the workers, which have the priority of other programs, and not Ray's lower one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.common import about, auto_precision, parser_of, save, spread
from benchmarks.corpora.corpus import MODEL, command, made_up, watch, write_corpus
from service.tools.corpora.work import LANES

PART_ROWS = 500
"""Of a part on Ray: in a corpus as small as this one, parts of the default size would leave actors idle at its end."""


def main(argv: Sequence[str]) -> int:
    parser = parser_of("corpora ray", __doc__)
    parser.add_argument("--rows", type=int, default=8000, help="for each worker (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="(default: %(default)s)")
    arguments = parser.parse_args(argv)
    rounds = []
    with tempfile.TemporaryDirectory() as name, nodes() as address:
        for number in range(arguments.rounds):
            half = write_corpus(Path(name) / "half.jsonl", made_up(arguments.rows, number))
            whole = write_corpus(Path(name) / "whole.jsonl", made_up(2 * arguments.rows, number))
            on_ray = (whole, "--ray", address, "--part-rows", str(PART_ROWS))
            one = {
                "two_runs_rows_per_s": sum(run_together([(half,), (half,)], num_lanes=LANES)),
                "ray_rows_per_s": sum(run_together([on_ray], num_lanes=2 * LANES)),
            }
            rounds.append({name: round(value, 1) for name, value in one.items()})
            print(json.dumps(rounds[-1]), file=sys.stderr)
    document = {
        "what": "rate of two actors on Ray over that of two runs in their own processes",
        **about(arguments, argv, "torch", "ray", precision=auto_precision()),
        "rows": arguments.rows,
        "part_rows": PART_ROWS,
        "model": MODEL,
        "threads": 1,
        "of_two_runs": spread([one["ray_rows_per_s"] / one["two_runs_rows_per_s"] for one in rounds]),
        "rounds": rounds,
    }
    save(document, arguments.json)
    return 0


@contextmanager
def nodes() -> Iterator[str]:
    """The address of a Ray cluster of two nodes with one CPU each."""
    os.environ |= {"RAY_worker_niceness": "0"}
    utils: Any = import_module("ray.cluster_utils")
    cluster = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster.address
    finally:
        cluster.shutdown()


def run_together(jobs: Sequence[tuple[Path, *tuple[str, ...]]], num_lanes: int) -> list[float]:
    """The rows per second of each of some jobs, a corpus and flags, that start at the same time."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ERLANGSHEN_REPLICAS__THREADS": "1"}
    with tempfile.TemporaryDirectory() as name:
        outs = [Path(name) / f"out-{number}.jsonl" for number in range(len(jobs))]
        running = [
            subprocess.Popen(command(source, out, *flags), env=environment, stdout=subprocess.DEVNULL)
            for out, (source, *flags) in zip(outs, jobs, strict=True)
        ]
        with ThreadPoolExecutor(len(running)) as pool:
            return list(pool.map(partial(rate_of, num_lanes=num_lanes), running, outs))


def rate_of(process: subprocess.Popen[bytes], out: Path, num_lanes: int) -> float:
    """The rows per second of a run, from when as many parts are done as it has in work at a time."""
    done: dict[str, float] = {}

    def look() -> None:
        for part in Path(f"{out}.parts").glob("part-*"):
            done.setdefault(part.stem, time.perf_counter())

    watch(process, look, every_s=0.02)
    ended = sorted((at, name) for name, at in done.items())
    num_rows = sum(int(end) - int(first) for _, first, end in (name.split("-") for _, name in ended[num_lanes:]))
    return num_rows / (ended[-1][0] - ended[num_lanes - 1][0])
