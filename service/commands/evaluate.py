"""`python -m service evaluate`: measures the accuracy of a running server on a labelled data set, over HTTP."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from tqdm import tqdm

from service.cli_args import add_key, file_to_write, list_of, server_url, whole_above_zero
from service.errors import DatasetError
from service.tools.data.converters import Example
from service.tools.data.registry import DATASETS, load
from service.tools.evaluation import EvaluationClient, EvaluationError, open_client, report_of

MAX_TABLE_CLASSES = 20
"""With more classes the confusion is only in --json."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--url", type=server_url, default="http://127.0.0.1:8000", help="the server (default: %(default)s)"
    )
    parser.add_argument(
        "--task", required=True, choices=DATASETS, metavar="TASK", help="a data set, one of those listed below"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder with the data sets")
    parser.add_argument(
        "--split",
        default="dev",
        help="train, dev or test; dev.even and dev.odd are halves of dev (default: %(default)s)",
    )
    parser.add_argument("--limit", type=whole_above_zero, metavar="N", help="at most N examples, drawn at random")
    parser.add_argument("--seed", type=int, default=1, help="seed of that draw (default: %(default)s)")
    parser.add_argument(
        "--model", metavar="NAME", help="evaluate this model instead of the one that the server chooses"
    )
    add_key(parser)
    parser.add_argument(
        "--head",
        nargs="?",
        const=(),
        type=list_of(str),
        metavar="A,B",
        help="evaluate a fine-tuned classifier: send no labels; A,B: its names of the classes, where they differ",
    )
    parser.add_argument(
        "--json", type=file_to_write, metavar="FILE", help="write the result to FILE; - is standard output"
    )


def run(argv: Sequence[str]) -> int:
    tasks = "\n".join(f"  {name:<18} {dataset.about}" for name, dataset in DATASETS.items())
    parser = ArgumentParser(
        prog="python -m service evaluate",
        description="Measure the accuracy of a running server on a labelled data set.",
        epilog=f"tasks:\n{tasks}",
        formatter_class=RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        report = asyncio.run(evaluate(args))
    except (DatasetError, EvaluationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _print(report, args.json)
    return 0


async def evaluate(args: Namespace, transport: httpx.AsyncBaseTransport | None = None) -> dict[str, Any]:
    """Sends the examples to the server and returns the report. `transport` replaces the network in tests."""
    examples = draw(load(args.task, args.data, args.split), args.limit, args.seed)
    if args.head:
        examples = rename_options(examples, args.head)
    started = time.perf_counter()
    async with open_client(args.url, args.key, transport) as client:
        evaluation = EvaluationClient(client, args.model)
        with closing(_bar(len(examples), args.task)) as bar:
            answers = await evaluation.evaluate(examples, bar.update, head=args.head is not None)
    model = evaluation.model
    about = {"task": args.task, "split": args.split, "data": str(args.data), "url": args.url, "model": model}
    when = {"when": datetime.now(UTC).isoformat(timespec="seconds")}
    return about | report_of(answers) | {"seconds": round(time.perf_counter() - started, 1)} | when


def draw(examples: list[Example], limit: int | None, seed: int) -> list[Example]:
    """At most `limit` random examples, in file order. Files are often sorted by class: the first ones are no sample."""
    if limit is None or limit >= len(examples):
        return examples
    return [examples[index] for index in sorted(random.Random(seed).sample(range(len(examples)), limit))]


def rename_options(examples: list[Example], labels: tuple[str, ...]) -> list[Example]:
    """The same examples with a model's own names of the classes, in the same order."""
    for example in examples:
        if len(example.options) != len(labels):
            raise EvaluationError(f"--head names {len(labels)} labels, the classes are {', '.join(example.options)}")
    return [replace(example, options=labels) for example in examples]


def _bar(total: int, name: str) -> tqdm[Any]:
    return tqdm(total=total, desc=name, unit="example", mininterval=0.2 if sys.stderr.isatty() else 10.0)


def _print(report: dict[str, Any], target: Path | None) -> None:
    text = json.dumps(report, ensure_ascii=False, indent=2)
    if target == Path("-"):
        print(text)
        return
    if target is not None:
        target.write_text(text + "\n", encoding="utf-8")
    print(summary(report))


def summary(report: dict[str, Any]) -> str:
    """The report as text: one line of accuracy, and the confusion table of up to MAX_TABLE_CLASSES classes."""
    low, high = report["interval_95"]
    lines = [
        f"{report['task']} ({report['split']}) by {report['model']}: {report['accuracy']:.1%} of {report['examples']} "
        f"(95 % interval {low:.1%} to {high:.1%}; chance {report['chance']:.1%}) in {report['seconds']} s"
    ]
    lines += [f"refused {num}: {reason}" for reason, num in report["refused"].items()]
    if report["confusion"] and len(report["confusion"]) <= MAX_TABLE_CLASSES:
        lines += ["", "rows: right answer, columns: the model's answer", *_table(report["confusion"])]
    return "\n".join(lines)


def _table(counts: dict[str, dict[str, int]]) -> list[str]:
    """Tab-separated, so that terminals and spreadsheets align the wide characters."""
    columns = list(next(iter(counts.values())))
    return ["\t".join(["", *columns]), *("\t".join([name, *map(str, row.values())]) for name, row in counts.items())]
