"""Loads a running server with real texts and prints throughput and latency: `python -m benchmarks.load --help`.

Closed loop (--concurrency): so many clients, each sends its next request when the last is answered. Open loop (--rate):
requests leave at random moments (Poisson) whatever the server does, and latency counts from the moment at which a
request was meant to leave, so that a stall shows in every request that it delayed.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import os
import platform
import random
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop
from tqdm import tqdm

from benchmarks.report import Sample, summarize, table
from benchmarks.texts import BODIES, Corpus, Request, make_requests
from benchmarks.wire import Client

DEFAULT_MIX = "zero-shot=4,classify=2,similarity=3,mrc=1"
REQUESTS_PER_TASK = 1000
BATCH_COUNTS = {
    "erlangshen_batch_rows_count": "batches",
    "erlangshen_batch_rows_sum": "rows",
    "erlangshen_batch_tokens_sum": "tokens",
}
METHODS = {
    "closed": "closed loop: each client sends when its last request is answered; latency from sending",
    "open": "open loop: Poisson arrivals at a fixed rate; latency from the moment a request was meant to leave",
}


class Run:
    """One measurement: sends requests, keeps samples. Requests that begin while warming up are not kept."""

    def __init__(self, client: Client, requests: Iterator[Request], timeout_s: float, bar: tqdm[Any]) -> None:
        self._client = client
        self._requests = requests
        self._timeout_s = timeout_s
        self._bar = bar
        self.samples: list[Sample] = []
        self.from_s = 0.0
        self.until_s = 0.0

    def begin(self, warm_up_s: float, duration_s: float) -> None:
        self.from_s = time.perf_counter() + warm_up_s
        self.until_s = self.from_s + duration_s

    async def closed(self, concurrency: int) -> None:
        async def client() -> None:
            while (now := time.perf_counter()) < self.until_s:
                await self.send(now)

        await asyncio.gather(*(client() for _ in range(concurrency)))

    async def open(self, rate: float, rng: random.Random) -> None:
        async with asyncio.TaskGroup() as group:
            due = time.perf_counter()
            while due < self.until_s:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(self.send(due))
                due += rng.expovariate(rate)

    async def send(self, started: float) -> None:
        """`started` is when the request was meant to leave: waiting for this line counts too."""
        request = next(self._requests)
        outcome, num_tokens = await self._outcome(request)
        ended = time.perf_counter()
        if started >= self.from_s:
            sample = Sample(request.task, started, ended - started, outcome, request.num_inputs, num_tokens)
            self.samples.append(sample)
            self._tick(ended)

    def _tick(self, now: float) -> None:
        passed = min(now, self.until_s - 0.001) - self.from_s  # a bar that is full by rounding warns
        self._bar.set_postfix_str(f"{len(self.samples) / max(passed, 0.1):,.0f} requests/s", refresh=False)
        self._bar.update(max(0.0, passed - self._bar.n))

    async def _outcome(self, request: Request) -> tuple[str, int]:
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._client.send("POST", request.path, request.body)
        except TimeoutError:
            return "timeout", 0
        except OSError:
            return "connection", 0
        if response.status != 200:
            return str(response.status), 0
        return "200", json.loads(response.body)["usage"]["tokens"]


async def measure(args: argparse.Namespace, corpus: Corpus) -> dict[str, Any]:
    """The whole run as one JSON-ready report. Raises OSError when the server cannot be reached."""
    url = urlsplit(args.url)
    rng = random.Random(args.seed)
    client = Client(url.hostname or "127.0.0.1", url.port or 80)
    models = json.loads((await client.send("GET", "/v1/models")).body)
    mix = await able(client, corpus, args.mix, args.model, rng)
    requests = endless(corpus, mix, args.inputs, args.model, rng)
    with closing(progress(args)) as bar:
        run = Run(client, requests, args.timeout, bar)
        before = await batch_counts(client)
        run.begin(args.warm_up, args.duration)
        await (run.open(args.rate, rng) if args.rate else run.closed(args.concurrency))
        batches = per_batch(before, await batch_counts(client))
    client.close()
    # A closed loop ends with requests that are answered after the end: they count neither as work nor as latency.
    kept = run.samples if args.rate else [s for s in run.samples if s.started_s + s.latency_s <= run.until_s]
    measured = {"results": summarize(kept, args.duration), "batches": batches}
    return setting(args, mix, corpus) | {"models": models} | measured


async def able(
    client: Client, corpus: Corpus, mix: dict[str, float], model: str | None, rng: random.Random
) -> dict[str, float]:
    """The part of the mix that this server and these texts can do, by one request each."""
    kept: dict[str, float] = {}
    for task, weight in mix.items():
        if task == "mrc" and not corpus.readings:
            print(f"{task}: left out, the texts hold no reading comprehension (C3)", file=sys.stderr)
            continue
        probe = make_requests(corpus, task, 1, 1, model, rng)[0]
        response = await client.send("POST", probe.path, probe.body)
        if response.status == 200:
            kept[task] = weight
        else:
            print(f"{task}: left out, the server answers {response.status}", file=sys.stderr)
    if not kept:
        raise ValueError("the server can do none of these tasks")
    return kept


def endless(
    corpus: Corpus, mix: dict[str, float], num_inputs: int, model: str | None, rng: random.Random
) -> Iterator[Request]:
    """Requests for ever, task by weight; bodies are made once, before the clock runs."""
    pools = {task: make_requests(corpus, task, REQUESTS_PER_TASK, num_inputs, model, rng) for task in mix}
    tasks, weights = list(mix), list(mix.values())

    def draw() -> Iterator[Request]:
        while True:
            yield rng.choice(pools[rng.choices(tasks, weights)[0]])

    return draw()


async def batch_counts(client: Client) -> dict[str, float]:
    """The server's own running totals; {} where it shows none."""
    response = await client.send("GET", "/metrics")
    lines = response.body.decode().splitlines() if response.status == 200 else []
    pairs = (line.split(" ")[:2] for line in lines if line.startswith(tuple(BATCH_COUNTS)))
    return {BATCH_COUNTS[name]: float(value) for name, value in pairs if name in BATCH_COUNTS}


def per_batch(before: dict[str, float], after: dict[str, float]) -> dict[str, float] | None:
    """Mean rows and tokens of the batches that the server computed in between, warm-up included."""
    grown = {name: after[name] - before[name] for name in after if name in before}
    if not grown.get("batches"):
        return None
    num = grown.pop("batches")
    return {"batches": num} | {f"mean_{name}": round(value / num, 2) for name, value in grown.items()}


def setting(args: argparse.Namespace, mix: dict[str, float], corpus: Corpus) -> dict[str, Any]:
    """What one must know to repeat the run."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.load", *sys.argv[1:]]),
        "method": METHODS["open" if args.rate else "closed"],
        "rate": args.rate,
        "concurrency": None if args.rate else args.concurrency,
        "duration_s": args.duration,
        "warm_up_s": args.warm_up,
        "inputs_per_request": args.inputs,
        "mix": mix,
        "seed": args.seed,
        "corpus": {"texts": len(corpus.texts), "readings": len(corpus.readings)},
        "machine": {"platform": f"{platform.system()} {platform.machine()}", "cores": len(os.sched_getaffinity(0))},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("uvloop", "numpy")},
    }


def progress(args: argparse.Namespace) -> tqdm[Any]:
    interval = 0.2 if sys.stderr.isatty() else 10.0
    shape = "{desc}: {percentage:3.0f}% |{bar}| {n:.0f}/{total:.0f} s{postfix}"
    return tqdm(total=args.duration, desc="load", bar_format=shape, mininterval=interval)


def parse_mix(text: str) -> dict[str, float]:
    mix = {name: float(weight or 1) for name, _, weight in (part.partition("=") for part in text.split(","))}
    unknown = set(mix) - set(BODIES)
    if unknown or min(mix.values()) < 0 or not sum(mix.values()):
        raise argparse.ArgumentTypeError(f"{text!r}: wanted TASK=WEIGHT,... of {', '.join(BODIES)}")
    return {task: weight for task, weight in mix.items() if weight}


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if (value := kind(text)) <= 0:
            raise argparse.ArgumentTypeError(f"{text}: wanted a number above zero")
        return value

    return parse


def is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    parser.add_argument("--texts", type=Path, required=True, help="a folder or file: JSON, JSON lines, tab or CSV")
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument("--concurrency", type=positive(int), default=16, help="closed loop: clients (default: 16)")
    loop.add_argument("--rate", type=positive(float), help="open loop: requests per second")
    parser.add_argument("--duration", type=positive(float), default=30.0, help="seconds measured (default: 30)")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds before that, not measured (default: 3)")
    parser.add_argument("--inputs", type=positive(int), default=1, help="inputs per request (default: 1)")
    parser.add_argument("--mix", type=parse_mix, default=parse_mix(DEFAULT_MIX), help=f"default: {DEFAULT_MIX}")
    parser.add_argument("--model", help="ask for this model by name")
    parser.add_argument("--timeout", type=positive(float), default=30.0, help="seconds per request (default: 30)")
    parser.add_argument("--seed", type=int, default=1, help="of texts, mix and arrivals (default: 1)")
    parser.add_argument("--json", type=Path, help="write the report there")
    parser.add_argument("--allow-remote", action="store_true", help="load a server that is not on this machine")
    args = parser.parse_args(argv)
    url = urlsplit(args.url)
    if url.scheme != "http":
        parser.error(f"--url {args.url}: wanted http://HOST:PORT")
    if not (args.allow_remote or is_loopback(url.hostname)):
        parser.error(f"--url {args.url}: not on this machine; --allow-remote if it is yours to load")
    return args


def main(argv: list[str]) -> int:
    args = parse_args(argv)
    try:
        corpus = Corpus.read(args.texts)
        if not corpus.texts:
            raise ValueError(f"--texts {args.texts}: no Chinese text found")
        report = uvloop.run(measure(args, corpus))
    except (OSError, ValueError) as error:
        print(f"load: {error}", file=sys.stderr)
        return 1
    print(report["method"])
    print(table(report["results"]))
    if batches := report["batches"]:
        print("server: " + ", ".join(f"{name.replace('_', ' ')} {value:,.1f}" for name, value in batches.items()))
    if args.json:
        args.json.write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return 0 if report["results"]["all"]["outcomes"].get("200") else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
