"""`python -m service plan`: computes how many replicas a load needs.

Reads measured speeds from a running server or from a file of results, and simulates the load.
"""

from __future__ import annotations

import json
import random
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import httpx

from service.cli_args import above_zero, add_key, checked, file_to_write, server_url, whole_above_zero
from service.host import is_loopback
from service.tools.bench.texts import Lengths
from service.tools.capacity import (
    Point,
    Speed,
    Traffic,
    choose_speed,
    find_fewest,
    neighbours,
    num_fronts,
    parse_speeds,
    read_speeds,
)

TIMEOUT_S = 10.0
NUM_LENGTHS = 4096


def run(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    source = args.speeds or args.url
    try:
        speed = choose_speed(read_speeds(args.speeds) if args.speeds else fetch_speeds(args.url, args.key), args.model)
    except (OSError, ValueError, httpx.HTTPError) as error:
        print(f"error: {source}: {error}", file=sys.stderr)
        return 2
    lengths = args.tokens.draw(NUM_LENGTHS, random.Random(args.seed))
    traffic = Traffic(args.rate, args.rows, lengths)
    best = find_fewest(speed, traffic, args.p95_ms / 1000)
    points = list(neighbours(speed, traffic, best))
    print(format_plan(args, speed, traffic, best, points))
    if args.json:
        args.json.write_text(json.dumps(report(args, speed, traffic, best, points), indent=2) + "\n", encoding="utf-8")
    return 0 if best.meets(args.p95_ms / 1000) else 1


def fetch_speeds(url: str, key: str | None) -> list[Speed]:
    """Raises httpx.HTTPError, and ValueError if the server does not answer with a page of metrics."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # The proxy of the environment cannot reach this machine's loopback address.
    is_direct = is_loopback(httpx.URL(url).host)
    response = httpx.get(f"{url.rstrip('/')}/metrics", headers=headers, timeout=TIMEOUT_S, trust_env=not is_direct)
    if response.status_code != 200:
        raise ValueError(f"GET /metrics answers {response.status_code}")
    return parse_speeds(response.text)


def format_plan(args: Namespace, speed: Speed, traffic: Traffic, best: Point, points: Sequence[Point]) -> str:
    rate = speed.tokens_per_s(traffic.row_tokens)
    cost = speed.cost
    lines = [
        f"{speed.model} on {speed.device} in {speed.precision}: {cost.batch * 1e3:.3g} ms a batch, "
        f"{cost.token * 1e6:.3g} µs a token, {cost.row * 1e6:.3g} µs a row; up to {speed.budget} tokens a batch",
        f"one replica: {rate:,.0f} tokens/s, {rate / traffic.row_tokens / traffic.rows:,.4g} of these requests/s",
        f"wanted: {args.rate:g} requests/s of {args.rows} x {args.tokens.text} tokens "
        f"(mean {traffic.row_tokens:.0f}), 95 % within {args.p95_ms:g} ms",
        "",
        "replicas   used    p50 ms    p95 ms    p99 ms",
        *(_line(one) for one in points),
        "",
        _advice(best, args.p95_ms),
        f"services (one HTTP process each): {num_fronts(traffic)}",
    ]
    return "\n".join(lines)


def _line(one: Point) -> str:
    times = (f"{'-' if time is None else format(time * 1e3, '.1f'):>9}" for time in (one.p50, one.p95, one.p99))
    return f"{one.replicas:8}  {one.used:5.0%} " + " ".join(times)


def _advice(best: Point, p95_ms: float) -> str:
    if best.meets(p95_ms / 1000):
        return f"replicas: {best.replicas}; with one spare for a failure or an update: {best.replicas + 1}"
    return "no number of replicas is enough: one batch alone takes longer; send shorter rows or use a faster device"


def report(args: Namespace, speed: Speed, traffic: Traffic, best: Point, points: Sequence[Point]) -> dict[str, object]:
    target = {"requests_per_s": args.rate, "rows": args.rows, "tokens": args.tokens.text, "p95_ms": args.p95_ms}
    return {
        "wish": target | {"mean_row_tokens": traffic.row_tokens},
        "speed": speed.as_json(),
        "replica_tokens_per_s": round(speed.tokens_per_s(traffic.row_tokens), 1),
        "replicas": best.replicas if best.meets(args.p95_ms / 1000) else None,
        "services": num_fronts(traffic),
        "points": [asdict(one) for one in points],
    }


def parse_args(argv: Sequence[str]) -> Namespace:
    parser = ArgumentParser(prog="python -m service plan", description="Compute how many replicas a load needs.")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--url",
        type=server_url,
        default="http://127.0.0.1:8000",
        help="read the speed from this server's /metrics (default: %(default)s)",
    )
    source.add_argument(
        "--speeds", type=Path, metavar="FILE", help="read the speed from a result of python -m benchmarks.engine speed"
    )
    add_key(parser)
    parser.add_argument("--model", metavar="NAME", help="the model to plan for (default: the first)")
    parser.add_argument("--rate", type=above_zero, required=True, metavar="R", help="requests per second")
    parser.add_argument("--rows", type=whole_above_zero, default=1, help="rows per request (default: 1)")
    parser.add_argument(
        "--tokens",
        type=checked(Lengths.parse),
        default=Lengths.parse("lognormal:31:152"),
        metavar="SHAPE",
        help="tokens per row: fixed:N, uniform:LOW:HIGH or lognormal:MEDIAN:P95 (default: lognormal:31:152)",
    )
    parser.add_argument(
        "--p95-ms", type=above_zero, default=200.0, help="target of the 95th percentile of latency (default: 200)"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of lengths and arrivals (default: 1)")
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="write the report to FILE")
    return parser.parse_args(argv)
