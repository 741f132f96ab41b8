"""`python -m service bench`: sends load to a running server and reports throughput, latency and the share of the
hardware's limit."""

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

from service.cli_args import above_zero, add_key, checked, file_to_write, list_of, server_url, whole_above_zero
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
    """Runs the measurement and returns its report.

    Raises:
        OSError: the server cannot be reached.
        ValueError: the server cannot do what is to be measured.
        DatasetError: the texts cannot be read.
    """
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
    """A limit that cannot be measured does not discard the measurement."""
    print("measuring the limit: the matrix products of the same batches alone ...", file=sys.stderr)
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
    """A progress bar in seconds that also shows the rate so far."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    shape = "{desc}: {percentage:3.0f}% |{bar}| {n:.0f}/{total:.0f} s{postfix}"
    with tqdm(total=duration_s, desc=load.name, bar_format=shape, mininterval=interval) as bar:

        def tick(passed_s: float, num_requests: int) -> None:
            bar.set_postfix_str(f"{num_requests / max(passed_s, 0.1):,.0f} requests/s", refresh=False)
            bar.update(max(0.0, min(passed_s, duration_s - 0.001) - bar.n))  # tqdm warns when rounding fills the bar

        yield tick


def parse_args(argv: Sequence[str]) -> Namespace:
    parser = ArgumentParser(
        prog="python -m service bench", description="Send load to a running server and measure throughput and latency."
    )
    _add_request_flags(parser)
    _add_load_flags(parser)
    args = parser.parse_args(argv)
    url = urlsplit(args.url)
    if url.scheme != "http":
        parser.error(f"--url {args.url}: wanted http://HOST:PORT; bench does not speak TLS")
    if not (args.allow_remote or is_loopback(url.hostname)):
        parser.error(f"--url {args.url}: not on this machine; pass --allow-remote if you may send load to it")
    if args.limit and not is_loopback(url.hostname):
        parser.error("--limit is measured on this machine: it does not apply to a server on another one")
    return args


def _add_request_flags(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--url", type=server_url, default="http://127.0.0.1:8000", help="the server (default: %(default)s)"
    )
    texts = parser.add_mutually_exclusive_group()
    texts.add_argument("--texts", type=Path, metavar="PATH", help="real texts: a file or folder of JSON, CSV or TSV")
    texts.add_argument(
        "--lengths",
        type=checked(Lengths.parse),
        default=Lengths.parse(DEFAULT_LENGTHS),
        metavar="SHAPE",
        help="length of generated texts: lognormal:MEDIAN:P95, uniform:LOW:HIGH or fixed:N characters "
        f"(default: {DEFAULT_LENGTHS})",
    )
    parser.add_argument(
        "--mix",
        type=checked(parse_mix),
        default=parse_mix(DEFAULT_MIX),
        help=f"tasks and their weights (default: {DEFAULT_MIX})",
    )
    parser.add_argument("--inputs", type=whole_above_zero, default=1, help="inputs per request (default: 1)")
    parser.add_argument("--model", metavar="NAME", help="use this model instead of the one that the server chooses")
    add_key(parser)
    parser.add_argument("--seed", type=int, default=1, help="seed of texts, mix and arrivals (default: 1)")
    parser.add_argument("--allow-remote", action="store_true", help="allow a server that is not on this machine")


def _add_load_flags(parser: ArgumentParser) -> None:
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument(
        "--concurrency",
        type=list_of(whole_above_zero),
        default=DEFAULT_CONCURRENCY,
        metavar="N,...",
        help="closed loop: number of clients; one measurement for each N (default: 16)",
    )
    loop.add_argument(
        "--rate", type=list_of(above_zero), metavar="R,...", help="open loop: requests per second; one for each R"
    )
    parser.add_argument("--duration", type=above_zero, default=30.0, help="seconds measured of each load (default: 30)")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds of warm-up before each load (default: 3)")
    parser.add_argument("--timeout", type=above_zero, default=30.0, help="seconds per request (default: 30)")
    parser.add_argument(
        "--limit", action="store_true", help="compare with the matrix products of the same batches alone"
    )
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="write the report to FILE")
    parser.add_argument("--plot", type=file_to_write, metavar="FILE.png", help="plot latency against throughput")
