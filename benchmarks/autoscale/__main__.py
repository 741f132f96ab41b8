"""Does the autoscaler of k8s/ follow a load? Recorded on one pod, replayed on many.

    python -m benchmarks.autoscale record FILE --port 8000 --peak-rate 60    # a compressed day on a running server
    python -m benchmarks.autoscale replay FILE --times 6                     # the autoscaler's arithmetic and manifest

The replay is arithmetic: the same on every machine.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from benchmarks.about import about, parser_of, save
from benchmarks.autoscale.hpa import Spec
from benchmarks.autoscale.recording import read, record, write
from benchmarks.autoscale.replay import Second, replay
from service.tools.bench.load import mixed_requests
from service.tools.bench.texts import Lengths, make_corpus

MANIFEST = Path(__file__).parents[2] / "k8s/components/autoscale/autoscaler.yaml"
METHOD = "the recorded load, multiplied and stretched, through the arithmetic of the autoscaler with its manifest"
LATE_S = 1.0
"""A wait that callers notice."""


def main() -> None:
    parser = parser_of("autoscale", __doc__)
    parser.add_argument("what", choices=["record", "replay"])
    parser.add_argument("file", type=Path, help="the recording (CSV)")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--peak-rate", type=float, default=60.0, help="requests a second at the day's peak")
    parser.add_argument("--day-s", type=float, default=600.0, help="seconds of the recorded day")
    parser.add_argument("--times", type=float, default=6.0, help="replay so many times the recorded load")
    parser.add_argument("--stretch", type=int, default=6, help="replay each second as so many")
    parser.add_argument("--start-s", type=float, default=30.0, help="seconds from the wish for a pod to its readiness")
    arguments = parser.parse_args()
    if arguments.what == "record":
        _record(arguments)
    else:
        _replay(arguments)


def _record(arguments: argparse.Namespace) -> None:
    corpus = make_corpus(Lengths.parse("lognormal:31:152"), seed=1)
    requests = mixed_requests(corpus, {"zero-shot": 1.0}, 1, None, 1)
    write(arguments.file, asyncio.run(record(arguments.port, requests, arguments.peak_rate, arguments.day_s)))


def _replay(arguments: argparse.Namespace) -> None:
    spec = Spec.of(yaml.safe_load(MANIFEST.read_text()))
    steps = read(arguments.file)
    options = {"times": arguments.times, "stretch": arguments.stretch, "start_s": arguments.start_s}
    result = summary(replay(steps, spec, **options))
    print(table(result))
    save(
        {**about("autoscale", __doc__, arguments.machine, method=METHOD), "options": options, **result}, arguments.json
    )


def summary(seconds: Sequence[Second]) -> dict[str, Any]:
    """Totals, and a row a minute."""
    tokens = sum(one.load_pods for one in seconds)
    return {
        "refused_share": round(sum(one.refused_pods for one in seconds) / tokens, 4),
        "late_share_of_time": round(fmean(one.wait_s > LATE_S for one in seconds), 4),
        "longest_wait_s": round(max(one.wait_s for one in seconds), 1),
        "mean_pods": round(fmean(one.pods for one in seconds), 2),
        "most_pods": max(one.pods for one in seconds),
        "mean_load_pods": round(fmean(one.load_pods for one in seconds), 2),
        "minutes": [_minute(seconds[begin : begin + 60]) for begin in range(0, len(seconds), 60)],
    }


def _minute(seconds: Sequence[Second]) -> dict[str, float]:
    return {
        "load_pods": round(fmean(one.load_pods for one in seconds), 2),
        "pods": max(one.pods for one in seconds),
        "ready": min(one.ready for one in seconds),
        "utilization": round(fmean(one.utilization for one in seconds), 2),
        "wait_s": round(max(one.wait_s for one in seconds), 1),
    }


def table(result: dict[str, Any]) -> str:
    lines = ["minute  load  pods  ready  busy  wait"]
    for minute, row in enumerate(result["minutes"]):
        lines.append(
            f"{minute:6}{row['load_pods']:6.1f}{row['pods']:6}{row['ready']:7}{row['utilization']:6.0%}{row['wait_s']:6.1f}"
        )
    lines += [f"{name}: {value}" for name, value in result.items() if name != "minutes"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
