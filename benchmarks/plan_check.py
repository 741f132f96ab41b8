"""Is a plan to be trusted: a server of `mini` under open loops of several rates, beside what `service plan` says.

    python -m benchmarks.plan_check --json benchmarks/results/plan_check.json

The speeds are the server's own, read from its metrics before each rate. Client and server share the machine.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

from benchmarks.about import about, auto_precision, parser_of, save
from benchmarks.local_server import serving
from service.commands import bench, plan
from service.tools.bench.texts import Lengths
from service.tools.capacity import Traffic, simulate_point

SHAPE = "lognormal:31:152"
SPECIAL_TOKENS = 2
"""Around the text of an embedding."""


def main() -> None:
    arguments = _parse()
    lengths = [SPECIAL_TOKENS + length for length in Lengths.parse(SHAPE).draw(4096, random.Random(1))]
    points = []
    with serving("--threads", str(arguments.threads)) as (port, _):
        url = f"http://127.0.0.1:{port}"
        measured(url, 20.0, 10.0)  # until the model has been measured
        for rate in arguments.rates:
            [speed] = plan.ask(url, None)
            said = simulate_point(speed, Traffic(rate, 1, lengths), 1)
            found = measured(url, rate, arguments.seconds)
            points.append(_entry(rate, said.used, (said.p50, said.p95), (found["p50"], found["p95"])))
            print(" ".join(f"{key} {value}" for key, value in points[-1].items()), flush=True)
    save({**_setting(arguments), "points": points}, arguments.json)


def measured(url: str, rate: float, seconds: float) -> dict[str, float]:
    """Latencies of an open loop in milliseconds."""
    flags = ["--url", url, "--mix", "embed", "--lengths", SHAPE, "--rate", str(rate), "--duration", str(seconds)]
    report = bench.bench(bench.parse_args(flags))
    found: dict[str, float] = report["points"][0]["results"]["all"]["latency_ms"]
    return found


def _entry(
    rate: float, used: float, said_s: tuple[float | None, ...], found_ms: tuple[float, ...]
) -> dict[str, float | None]:
    said = [None if seconds is None else round(1000 * seconds, 1) for seconds in said_s]
    return {
        "requests_per_s": rate,
        "planned_used": round(used, 3),
        "planned_p50_ms": said[0],
        "planned_p95_ms": said[1],
        "measured_p50_ms": round(found_ms[0], 1),
        "measured_p95_ms": round(found_ms[1], 1),
    }


def _setting(arguments: argparse.Namespace) -> dict[str, Any]:
    method = f"mini, /v1/embed, one text of {SHAPE} characters a request, Poisson arrivals, {arguments.threads} "
    method += "compute threads; client and server on one machine"
    return {
        "what": "latencies that `service plan` says, and those of an open loop at the same rate",
        **about("plan_check", __doc__, arguments.machine, "torch", method=method, precision=auto_precision()),
        "seconds_of_a_rate": arguments.seconds,
    }


def _parse() -> argparse.Namespace:
    parser = parser_of("plan_check", __doc__)
    parser.add_argument("--rates", type=lambda text: [float(part) for part in text.split(",")], default=[50, 100, 200])
    parser.add_argument("--seconds", type=float, default=20.0, help="of one rate (default: 20)")
    parser.add_argument("--threads", type=int, default=1, help="that compute (default: 1)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
