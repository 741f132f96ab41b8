"""`python -m service evaluate`: the accuracy of a running server on a labelled data set, asked over HTTP.

Knows nothing of models: each example is sent as text, question and options, and the option that comes back is compared.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

from service.cli_args import add_key
from service.errors import DatasetError
from service.host import is_loopback
from service.tools.data.converters import Example
from service.tools.data.registry import DATASETS, load
from service.tools.evaluation import IN_FLIGHT, TIMEOUT_S, EvaluationError, Server, report_of

WIDEST = 20
"""A confusion table of more classes is left to --json."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--url", type=_url, default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    parser.add_argument("--task", required=True, choices=DATASETS, metavar="TASK", help="one of those listed below")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder that holds the data sets")
    parser.add_argument("--split", default="dev", help="train, dev or test; dev.even and dev.odd are its halves")
    parser.add_argument("--limit", type=_positive, metavar="N", help="only N examples, drawn at random")
    parser.add_argument("--seed", type=int, default=1, help="of that draw (default: %(default)s)")
    parser.add_argument("--model", metavar="NAME", help="ask this model, not the one the server would choose")
    add_key(parser)
    parser.add_argument(
        "--head",
        nargs="?",
        const=(),
        type=_labels,
        metavar="A,B",
        help="send no labels, measure a fine-tuned classifier; A,B: its names for the classes, where they differ",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there; - is standard output")


def run(argv: Sequence[str]) -> int:
    tasks = "\n".join(f"  {name:<18} {dataset.about}" for name, dataset in DATASETS.items())
    parser = ArgumentParser(
        prog="python -m service evaluate", epilog=f"tasks:\n{tasks}", formatter_class=RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        report = asyncio.run(evaluate(args))
    except (DatasetError, EvaluationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _show(report, args.json)
    return 0


async def evaluate(args: Namespace, transport: httpx.AsyncBaseTransport | None = None) -> dict[str, Any]:
    """Load, ask, count. `transport` stands in for the network in tests."""
    examples = draw(load(args.task, args.data, args.split), args.limit, args.seed)
    if args.head:
        examples = renamed(examples, args.head)
    started = time.perf_counter()
    limits = httpx.Limits(max_connections=IN_FLIGHT)
    # A proxy that the environment names is for the world outside, not for this machine.
    through_proxy = not is_loopback(httpx.URL(args.url).host)
    client = httpx.AsyncClient(
        base_url=args.url,
        headers={"Authorization": f"Bearer {args.key}"} if args.key else {},
        timeout=TIMEOUT_S,
        limits=limits,
        transport=transport,
        trust_env=through_proxy,
    )
    async with client:
        server = Server(client, args.model)
        with closing(_bar(len(examples), args.task)) as bar:
            asked = await server.ask(examples, bar.update, head=args.head is not None)
    about = {"task": args.task, "split": args.split, "data": str(args.data), "url": args.url, "model": server.model}
    when = {"when": datetime.now(UTC).isoformat(timespec="seconds")}
    return about | report_of(asked) | {"seconds": round(time.perf_counter() - started, 1)} | when


def draw(examples: list[Example], limit: int | None, seed: int) -> list[Example]:
    """At most `limit` examples in file order: files are often sorted by class, so the first ones would not do."""
    if limit is None or limit >= len(examples):
        return examples
    return [examples[index] for index in sorted(random.Random(seed).sample(range(len(examples)), limit))]


def renamed(examples: list[Example], labels: tuple[str, ...]) -> list[Example]:
    """The same examples with the classes called by a model's own labels, in the same order."""
    for example in examples:
        if len(example.options) != len(labels):
            raise EvaluationError(f"--head names {len(labels)} labels, the classes are {', '.join(example.options)}")
    return [replace(example, options=labels) for example in examples]


def _labels(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text}: wanted a whole number above zero")
    return int(text)


def _url(text: str) -> str:
    if httpx.URL(text).scheme not in ("http", "https"):
        raise ArgumentTypeError(f"{text}: wanted http://HOST:PORT")
    return text


def _bar(total: int, name: str) -> tqdm[Any]:
    return tqdm(total=total, desc=name, unit="example", mininterval=0.2 if sys.stderr.isatty() else 10.0)


def _show(report: dict[str, Any], target: Path | None) -> None:
    text = json.dumps(report, ensure_ascii=False, indent=2)
    if target == Path("-"):
        print(text)
        return
    if target is not None:
        target.write_text(text + "\n", encoding="utf-8")
    print(summary(report))


def summary(report: dict[str, Any]) -> str:
    """For people: one line of accuracy, and the confusion as a table where it is small enough to read."""
    low, high = report["interval_95"]
    lines = [
        f"{report['task']} ({report['split']}) by {report['model']}: {report['accuracy']:.1%} of {report['examples']} "
        f"(95 % interval {low:.1%} to {high:.1%}; chance {report['chance']:.1%}) in {report['seconds']} s"
    ]
    lines += [f"refused {num}: {reason}" for reason, num in report["refused"].items()]
    if report["confusion"] and len(report["confusion"]) <= WIDEST:
        lines += ["", "rows: right answer, columns: the model's answer", *_table(report["confusion"])]
    return "\n".join(lines)


def _table(counts: dict[str, dict[str, int]]) -> list[str]:
    """Tab-separated: terminals and spreadsheets both align wide characters that way better than we could."""
    columns = list(next(iter(counts.values())))
    return ["\t".join(["", *columns]), *("\t".join([name, *map(str, row.values())]) for name, row in counts.items())]
