"""`python -m service bench`: loads a running server and tells throughput, latency and how near it comes to the limit.

Knows flags, the bar and the printed table; what is sent and counted is the bench's room.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop
from tqdm import tqdm

from service.cli_args import above_zero, add_key, checked, file_to_write, list_of, whole_above_zero
from service.host import is_loopback
from service.tools.bench.client import Client
from service.tools.bench.load import Load, Tick, parse_mix
from service.tools.bench.measure import Plan, measure
from service.tools.bench.provenance import provenance
from service.tools.bench.report import add_limits, format_report, plot, require_matplotlib
from service.tools.bench.texts import Corpus, Lengths, make_corpus

DEFAULT_MIX = "zero-shot=4,classify=2,similarity=3,mrc=1"
DEFAULT_LENGTHS = "lognormal:31:152"
DEFAULT_CONCURRENCY = (16,)


def run(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    try:
        report = bench(args)
    except (OSError, ValueError) as error:
        print(f"error: {args.url}: {error}", file=sys.stderr)
        return 2
    report = provenance("service bench", argv, "torch", "uvloop", "numpy") | report
    print(format_report(report))
    if args.json:
        args.json.write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    if args.plot:
        plot(report, args.plot)
    is_answered = all(point["results"]["all"]["requests_per_s"] for point in report["points"])
    has_limit = report.get("limit") or not args.limit
    return 0 if is_answered and has_limit else 1


def bench(args: Namespace) -> dict[str, Any]:
    """Measures what the flags ask for. Raises OSError and ValueError."""
    if args.plot:
        require_matplotlib()
    corpus = Corpus.read(args.texts) if args.texts else make_corpus(args.lengths, args.seed)
    plan = Plan(
        loads=tuple(loads_of(args)),
        mix=args.mix,
        duration_s=args.duration,
        warm_up_s=args.warm_up,
        num_inputs=args.inputs,
        model=args.model,
        timeout_s=args.timeout,
        seed=args.seed,
    )
    report = uvloop.run(_measure(args.url, args.key or "", plan, corpus))
    if args.limit:
        _add_limits(report, args.model)
    return report


def _add_limits(report: dict[str, Any], model: str | None) -> None:
    """What was measured is kept when its limit cannot be."""
    print("measuring the limit: bare matrix products of the same batches ...", file=sys.stderr)
    try:
        add_limits(report, model)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        report["limit"] = None


async def _measure(url: str, key: str, plan: Plan, corpus: Corpus) -> dict[str, Any]:
    parts = urlsplit(url)
    client = Client(parts.hostname or "127.0.0.1", parts.port or 80, key)
    try:
        return await measure(client, plan, corpus, progress)
    finally:
        client.close()


def loads_of(args: Namespace) -> Iterator[Load]:
    if args.rate:
        yield from (Load("rate", level) for level in args.rate)
    else:
        yield from (Load("concurrency", level) for level in args.concurrency)


@contextmanager
def progress(load: Load, duration_s: float) -> Iterator[Tick]:
    """A bar in seconds, with the rate so far beside it."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    shape = "{desc}: {percentage:3.0f}% |{bar}| {n:.0f}/{total:.0f} s{postfix}"
    with tqdm(total=duration_s, desc=load.name, bar_format=shape, mininterval=interval) as bar:

        def tick(passed_s: float, num_requests: int) -> None:
            bar.set_postfix_str(f"{num_requests / max(passed_s, 0.1):,.0f} requests/s", refresh=False)
            bar.update(max(0.0, min(passed_s, duration_s - 0.001) - bar.n))  # a bar full by rounding warns

        yield tick


def parse_args(argv: Sequence[str]) -> Namespace:
    parser = ArgumentParser(prog="python -m service bench", description="Load a running server and measure it.")
    _add_what(parser)
    _add_how(parser)
    args = parser.parse_args(argv)
    url = urlsplit(args.url)
    if url.scheme != "http":
        parser.error(f"--url {args.url}: wanted http://HOST:PORT")
    if not (args.allow_remote or is_loopback(url.hostname)):
        parser.error(f"--url {args.url}: not on this machine; --allow-remote if it is yours to load")
    if args.limit and not is_loopback(url.hostname):
        parser.error("--limit is measured on this machine: it says nothing of a server on another one")
    return args


def _add_what(parser: ArgumentParser) -> None:
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    texts = parser.add_mutually_exclusive_group()
    texts.add_argument("--texts", type=Path, metavar="PATH", help="real texts: a folder or file of JSON, tab or CSV")
    texts.add_argument(
        "--lengths",
        type=checked(Lengths.parse),
        default=Lengths.parse(DEFAULT_LENGTHS),
        metavar="SHAPE",
        help="made-up texts: lognormal:MEDIAN:P95, uniform:LOW:HIGH or fixed:N characters "
        f"(default: {DEFAULT_LENGTHS})",
    )
    parser.add_argument(
        "--mix", type=checked(parse_mix), default=parse_mix(DEFAULT_MIX), help=f"default: {DEFAULT_MIX}"
    )
    parser.add_argument("--inputs", type=whole_above_zero, default=1, help="inputs per request (default: 1)")
    parser.add_argument("--model", metavar="NAME", help="ask for this model by name")
    add_key(parser)
    parser.add_argument("--seed", type=int, default=1, help="of texts, mix and arrivals (default: 1)")
    parser.add_argument("--allow-remote", action="store_true", help="load a server that is not on this machine")


def _add_how(parser: ArgumentParser) -> None:
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument(
        "--concurrency",
        type=list_of(whole_above_zero),
        default=DEFAULT_CONCURRENCY,
        metavar="N,...",
        help="closed loop: clients, one measurement for each (default: 16)",
    )
    loop.add_argument("--rate", type=list_of(above_zero), metavar="R,...", help="open loop: requests per second")
    parser.add_argument("--duration", type=above_zero, default=30.0, help="seconds of each load (default: 30)")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds before each, not measured (default: 3)")
    parser.add_argument("--timeout", type=above_zero, default=30.0, help="seconds per request (default: 30)")
    parser.add_argument(
        "--limit", action="store_true", help="compare with the bare matrix products of the same batches"
    )
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="write the report there")
    parser.add_argument("--plot", type=file_to_write, metavar="FILE.png", help="draw latency against throughput")
