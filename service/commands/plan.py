"""`python -m service plan`: computes how many replicas a load needs, or what load some replicas carry.

Reads measured speeds from a running server, a saved /metrics page or a file of results, and simulates the load. The
requests are those that the server has counted, or alike and described by flags.
"""

from __future__ import annotations

import json
import random
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from service.cli_args import above_zero, add_key, checked, file_to_write, server_url, whole_above_zero
from service.host import is_loopback
from service.tools.bench.texts import Lengths
from service.tools.capacity import (
    Point,
    Speed,
    Target,
    Traffic,
    choose_speed,
    find_fewest,
    find_most,
    neighbours,
    num_fronts,
    parse_speeds,
    read_speeds,
    simulate_point,
)
from service.tools.data_sheets import DATA_SHEETS, ENCODER_WEIGHTS, MODEL_USE, count_weights, estimate_speed
from service.tools.traffic_mix import Mix, find_busiest, read_mix, weigh_tokens

TIMEOUT_S = 10.0
NUM_LENGTHS = 4096
FEW_REQUESTS = 100
DEFAULT_URL = "http://127.0.0.1:8000"
SPREAD = Lengths.parse("lognormal:31:152")
"""Tokens of a row where nothing was measured, and the spread of rows about a measured mean."""
SHARES = (0.5, 0.8, 1.0)
"""Of the greatest rate: the rates for which latencies are shown."""


@dataclass(frozen=True, slots=True)
class Load:
    """The requests to plan for; `about` describes them in lines for the reader, `wish` in the report."""

    traffic: Traffic
    about: Sequence[str]
    wish: dict[str, Any]


def run(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    sources = [str(each) for each in (args.metrics or args.url, args.speeds or args.device) if each]
    try:
        page = read_page(args)
        speed = read_speed(args, page)
        load = make_load(args, page, speed)
    except (OSError, ValueError, httpx.HTTPError) as error:
        print(f"error: {', '.join(sources)}: {error}", file=sys.stderr)
        return 2
    target = Target(args.p95_ms / 1000, args.max_used)
    lines, found = plan_rate(args, speed, load, target) if args.replicas else plan_replicas(args, speed, load, target)
    print("\n".join([*describe(args, speed, load), "", *lines]))
    if args.json:
        text = json.dumps({**report(args, speed, load), **found}, indent=2)
        args.json.write_text(f"{text}\n", encoding="utf-8")
    return 0 if found["is_met"] else 1


def read_page(args: Namespace) -> str | None:
    """The /metrics page; None where only a file of speeds or a data sheet is wanted. Raises as `fetch` does."""
    if args.metrics:
        return str(args.metrics.read_text(encoding="utf-8"))
    return fetch(args.url, "/metrics", args.key).text if args.url else None


def fetch(url: str, path: str, key: str | None) -> httpx.Response:
    """Raises httpx.HTTPError, and ValueError if the server does not answer with 200."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # The proxy of the environment cannot reach this machine's loopback address.
    is_direct = is_loopback(httpx.URL(url).host)
    response = httpx.get(f"{url.rstrip('/')}{path}", headers=headers, timeout=TIMEOUT_S, trust_env=not is_direct)
    if response.status_code != 200:
        raise ValueError(f"GET {path} answers {response.status_code}")
    return response


def read_speed(args: Namespace, page: str | None) -> Speed:
    """Raises OSError, httpx.HTTPError, or ValueError if the source has no speed of the model."""
    if args.speeds:
        return choose_speed(read_speeds(args.speeds), args.model)
    if args.device:
        return estimate_speed(*find_weights(args), args.device)
    speeds = parse_speeds(page or "")
    busiest = None if args.model else find_busiest(page or "", speeds)
    return busiest or choose_speed(speeds, args.model)


def find_weights(args: Namespace) -> tuple[str, int]:
    """The model, and the weights of its encoder. Raises httpx.HTTPError, and ValueError for an unknown model."""
    if args.model in ENCODER_WEIGHTS:
        return args.model, ENCODER_WEIGHTS[args.model]
    if not args.url:
        raise ValueError(f"--model: wanted {', '.join(ENCODER_WEIGHTS)}, or --url of a server that serves it")
    for model in fetch(args.url, "/v1/models", args.key).json()["models"]:
        if args.model in (None, model["name"]):
            return model["name"], count_weights(model["num_layers"], model["hidden_size"], model["ffn_size"])
    raise ValueError(f"the server has no model {args.model!r}; --model may be {', '.join(ENCODER_WEIGHTS)}, too")


def make_load(args: Namespace, page: str | None, speed: Speed) -> Load:
    """The requests that the server has counted, unless flags describe others."""
    rate, rng = args.rate or 1.0, random.Random(args.seed)
    if page is not None and not (args.tokens or args.rows):
        mix = find_mix(page, speed)
        if mix is not None:
            return Load(mix.traffic(rate, NUM_LENGTHS, SPREAD, rng), list(describe_mix(mix)), {"mix": mix_report(mix)})
    shape, rows = args.tokens or SPREAD, args.rows or 1
    traffic = Traffic.alike(rate, rows, shape.draw(NUM_LENGTHS, rng))
    about = [f"requests: {rows} x {shape.text} tokens (mean {traffic.row_tokens:.0f})"]
    if page is not None and not (args.tokens or args.rows):
        about[0] += "; the server has counted none yet"
    return Load(traffic, about, {"rows": rows, "tokens": shape.text})


def find_mix(page: str, speed: Speed) -> Mix | None:
    """The mix in tokens of this speed's model; in those of the busiest one, where the page is another server's."""
    speeds = parse_speeds(page)
    if speed in speeds:
        return read_mix(page, speed.model, weigh_tokens(speed, speeds))
    if speed.model in [one.model for one in speeds]:
        return read_mix(page, speed.model)
    busiest = find_busiest(page, speeds)
    return read_mix(page, busiest.model) if busiest else None


def describe_mix(mix: Mix) -> Iterator[str]:
    counted = f"{mix.num_requests:,.0f} requests" if mix.num_requests > 1 else "1 request"
    yield f"requests: as counted by the server ({counted}), {mix.tokens_per_request:.0f} tokens of {mix.model} each"
    if mix.num_requests < FEW_REQUESTS:
        yield "  few requests to plan by; let the server answer more first, or describe them with --tokens and --rows"
    yield "  task               share   tokens   inputs: mean    p50    p95"
    for one in mix.tasks:
        share = one.num_requests / mix.num_requests
        inputs = f"{one.inputs_per_request:6.1f} {one.inputs_at(0.5):6.0f} {one.inputs_at(0.95):6.0f}"
        yield f"  {one.task:16} {share:7.1%} {one.tokens_per_request:8.0f}         {inputs}"
    for name, weight in mix.weights.items():
        yield f"  a token of {name} is counted as {weight:.3g} of {mix.model}"
    if mix.not_counted:
        yield f"  the work of other models comes on top: {', '.join(mix.not_counted)}"


def mix_report(mix: Mix) -> dict[str, Any]:
    tasks = {
        one.task: {
            "requests": one.num_requests,
            "tokens_per_request": round(one.tokens_per_request, 1),
            "inputs_per_request": round(one.inputs_per_request, 2),
            "inputs_p50": round(one.inputs_at(0.5), 1),
            "inputs_p95": round(one.inputs_at(0.95), 1),
        }
        for one in mix.tasks
    }
    weights = {name: round(weight, 4) for name, weight in mix.weights.items()}
    counted = {"token_weights": weights, "not_counted": list(mix.not_counted)}
    return {"model": mix.model, "tokens_per_request": round(mix.tokens_per_request, 1), "tasks": tasks, **counted}


def plan_replicas(args: Namespace, speed: Speed, load: Load, target: Target) -> tuple[list[str], dict[str, Any]]:
    """The fewest replicas for --rate."""
    best = find_fewest(speed, load.traffic, target)
    points = list(neighbours(speed, load.traffic, best))
    is_met = best.meets(target)
    advice = "no number of replicas is enough: one batch alone takes longer; send shorter rows or use a faster device"
    if is_met:
        advice = f"replicas: {best.replicas}; with one spare for a failure or an update: {best.replicas + 1}"
    services = num_fronts(load.traffic)
    lines = [
        f"wanted: {args.rate:g} requests/s, {_target_text(args)}",
        "",
        "replicas   used    p50 ms    p95 ms    p99 ms",
        *(f"{one.replicas:8}  {_numbers(one)}" for one in points),
        "",
        advice,
        f"services (one HTTP process each): {services}",
    ]
    found = {"replicas": best.replicas if is_met else None, "services": services, "points": [*map(asdict, points)]}
    return lines, {"is_met": is_met, **found}


def plan_rate(args: Namespace, speed: Speed, load: Load, target: Target) -> tuple[list[str], dict[str, Any]]:
    """The greatest rate that --replicas carry."""
    rate = find_most(speed, load.traffic, args.replicas, target)
    wanted = f"wanted: the greatest rate that replicas: {args.replicas} carry, {_target_text(args)}"
    if not rate:
        advice = "no rate is low enough: one batch alone takes longer; send shorter rows or use a faster device"
        return [wanted, "", advice], {"is_met": False, "requests_per_s": None}
    points = [(share * rate, simulate_point(speed, load.traffic.at(share * rate), args.replicas)) for share in SHARES]
    services = num_fronts(load.traffic.at(rate))
    tokens_per_s = load.traffic.at(rate).tokens_per_s
    found: dict[str, Any] = {"requests_per_s": rate, "tokens_per_s": tokens_per_s, "services": services}
    advice = f"rate: {rate:,.4g} requests/s, {tokens_per_s:,.0f} tokens/s"
    if args.replicas > 1:
        left = found["requests_per_s_with_one_lost"] = find_most(speed, load.traffic, args.replicas - 1, target)
        advice += f"; while one replica is lost or updated: {left:,.4g} requests/s"
    lines = [
        wanted,
        "",
        "requests/s   used    p50 ms    p95 ms    p99 ms",
        *(f"{at:10,.4g}  {_numbers(one)}" for at, one in points),
        "",
        advice,
        f"services (one HTTP process each): {services}",
    ]
    shown = [{"requests_per_s": at, **asdict(one)} for at, one in points]
    return lines, {"is_met": True, **found, "points": shown}


def describe(args: Namespace, speed: Speed, load: Load) -> list[str]:
    cost, rate = speed.cost, speed.tokens_per_s(load.traffic.row_tokens)
    requests_per_s = rate / load.traffic.row_tokens / load.traffic.rows
    estimate = [
        f"an estimate, not a measurement: {MODEL_USE:.0%} of the rated bfloat16 arithmetic, all weights per batch"
    ]
    return [
        f"{speed.model} on {speed.device} in {speed.precision}: {cost.batch * 1e3:.3g} ms a batch, "
        f"{cost.token * 1e6:.3g} µs a token, {cost.row * 1e6:.3g} µs a row; up to {speed.budget} tokens a batch",
        *(estimate if args.device else []),
        f"one replica: {rate:,.0f} tokens/s, {requests_per_s:,.4g} of these requests/s",
        *load.about,
    ]


def report(args: Namespace, speed: Speed, load: Load) -> dict[str, Any]:
    given = {"requests_per_s": args.rate, "replicas": args.replicas}
    wish = {name: value for name, value in given.items() if value} | {"p95_ms": args.p95_ms, "max_used": args.max_used}
    return {
        "wish": wish | load.wish | {"mean_row_tokens": load.traffic.row_tokens},
        "speed": speed.as_json(),
        "is_estimate": bool(args.device),
        "replica_tokens_per_s": round(speed.tokens_per_s(load.traffic.row_tokens), 1),
    }


def _target_text(args: Namespace) -> str:
    used = "" if args.max_used == 1 else f", replicas computing up to {args.max_used:.0%} of the time"
    return f"95 % within {args.p95_ms:g} ms{used}"


def _numbers(one: Point) -> str:
    times = (f"{'-' if time is None else format(time * 1e3, '.1f'):>9}" for time in (one.p50, one.p95, one.p99))
    return f"{one.used:5.0%} " + " ".join(times)


@checked
def _share(text: str) -> float:
    if not 0 < (value := float(text)) <= 1:
        raise ValueError(f"{text}: wanted a number above 0, up to 1")
    return value


def parse_args(argv: Sequence[str]) -> Namespace:
    parser = ArgumentParser(
        prog="python -m service plan",
        description="Compute how many replicas a load needs (--rate), or what load some replicas carry (--replicas).",
    )
    page = parser.add_argument_group("what is known of the server").add_mutually_exclusive_group()
    page.add_argument(
        "--url",
        type=server_url,
        help=f"read speed and requests from this server's /metrics (default: {DEFAULT_URL}, without the other sources)",
    )
    page.add_argument("--metrics", type=Path, metavar="FILE", help="read them from a saved /metrics page")
    speed = parser.add_argument_group("another speed than the server's").add_mutually_exclusive_group()
    speed.add_argument(
        "--speeds", type=Path, metavar="FILE", help="read the speed from a result of python -m benchmarks.engine speed"
    )
    speed.add_argument(
        "--device",
        metavar="GPU",
        type=str.upper,
        choices=tuple(DATA_SHEETS),
        help=f"estimate the speed from a GPU's data sheet: {', '.join(DATA_SHEETS)}",
    )
    add_key(parser)
    parser.add_argument(
        "--model",
        metavar="NAME",
        help=f"the model to plan for (default: the busiest one); with --device also {', '.join(ENCODER_WEIGHTS)}",
    )
    question = parser.add_mutually_exclusive_group(required=True)
    question.add_argument("--rate", type=above_zero, metavar="R", help="requests per second: how many replicas?")
    question.add_argument("--replicas", type=whole_above_zero, metavar="N", help="replicas: how many requests/s?")
    parser.add_argument(
        "--rows",
        type=whole_above_zero,
        metavar="N",
        help="rows per request, all alike (default: as the server has counted, or 1)",
    )
    parser.add_argument(
        "--tokens",
        type=checked(Lengths.parse),
        metavar="SHAPE",
        help="tokens per row, not characters: fixed:N, uniform:LOW:HIGH or lognormal:MEDIAN:P95 (default: as the "
        f"server has counted, or {SPREAD.text})",
    )
    parser.add_argument(
        "--p95-ms", type=above_zero, default=200.0, help="target of the 95th percentile of latency (default: 200)"
    )
    parser.add_argument(
        "--max-used",
        type=_share,
        default=1.0,
        metavar="SHARE",
        help="greatest share of the time that replicas compute, such as 0.7 (default: 1, latency alone decides)",
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of lengths and arrivals (default: 1)")
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="write the report to FILE")
    args = parser.parse_args(argv)
    if not (args.url or args.metrics or args.speeds or args.device):
        args.url = DEFAULT_URL
    return args
