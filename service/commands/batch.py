"""`python -m service batch`: answers every row of a corpus, in this process, at servers, or on a Ray cluster."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, redirect_stdout
from dataclasses import asdict
from functools import partial
from typing import Any, Final

from tqdm import tqdm

from service.cli_args import add_key, checked, list_of, server_url, whole_above_zero
from service.commands.connection import running
from service.errors import DatasetError
from service.settings import Settings
from service.settings_sources import load
from service.tools.corpora import on_ray
from service.tools.corpora.asking import PAIRS, TASKS, Ask, Columns
from service.tools.corpora.bulk_client import BulkClient, HttpServer, InProcess
from service.tools.corpora.job import Counts, Job
from service.tools.corpora.source import FORMATS, SUFFIXES, format_of
from service.tools.corpora.work import Work


def add_arguments(parser: ArgumentParser) -> None:
    files = f"a path, or a URL that fsspec knows, as s3://BUCKET/FILE ({', '.join(SUFFIXES)})"
    parser.add_argument("source", metavar="IN", help=f"the corpus: {files}")
    parser.add_argument(
        "out", metavar="OUT", help="the answers: the same, or without such a suffix a folder, which gets several files"
    )
    parser.add_argument("--task", choices=TASKS, required=True, help="what is asked of each row")
    parser.add_argument("--labels", type=list_of(str.strip), metavar="A,B", help="the labels to choose from")
    parser.add_argument(
        "--body", type=body, default={}, metavar="JSON", help='more fields of each request, as {"top_k": 3}'
    )
    parser.add_argument(
        "--model",
        metavar="SOURCE",
        help="start this model (a directory, a hub id, or mini) with the settings of `serve` in the environment; "
        "several are separated by commas (default: those that ship). With --url: one of the servers' models",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--url", type=server_url, action="append", help="ask the server that runs here instead; may be repeated"
    )
    where.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="compute on this Ray cluster: an address, auto, or local (requirements/ray.txt)",
    )
    parser.add_argument(
        "--part-rows", type=whole_above_zero, default=2000, metavar="N", help="rows of a part on Ray (%(default)s)"
    )
    add_key(parser)
    fields = parser.add_argument_group("columns of IN")
    fields.add_argument("--text", default="text", metavar="COLUMN", help="the text, or the passage (%(default)s)")
    fields.add_argument("--text-pair", metavar="COLUMN", help="the second text of a pair (of pairs: text_pair)")
    fields.add_argument("--question-field", metavar="COLUMN", help="the question (of mrc: question)")
    fields.add_argument("--choices", metavar="COLUMN", help="the labels or the choices of each row")
    fields.add_argument("--separator", default="|", metavar="S", help="between them in a cell (%(default)s)")
    fields.add_argument(
        "--keep", type=list_of(str.strip), default=(), metavar="A,B", help="columns that are copied to OUT, as a key"
    )
    fields.add_argument("--encoding", default="utf-8", metavar="NAME", help="of JSON lines and CSV (%(default)s)")
    parser.add_argument("--format", choices=FORMATS, help="of the files in a folder (default: jsonl)")
    parser.add_argument("--overwrite", action="store_true", help="start again, whatever is there")


@checked
def body(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict) or "inputs" in value:
        raise ArgumentTypeError("wanted a JSON object without inputs")
    return value


def run(argv: Sequence[str]) -> int:
    parser = ArgumentParser(
        prog="python -m service batch",
        description="Answer every row of a corpus. OUT has one row for each row of IN, in the same order; bad rows "
        "have an error there, and are in OUT.bad.jsonl. The same command goes on where it was interrupted.",
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    print(json.dumps(batch(args), ensure_ascii=False, indent=2))
    return 0


def batch(args: Namespace) -> dict[str, Any]:
    """Computes the job and returns a report.

    Raises:
        StartupError: IN cannot be read, OUT is there, or nothing can answer.
    """
    job = job_of(args)
    with job.parts.locked():
        if job.begin(overwrite=args.overwrite):
            print(f"going on: {sum(span.end - span.first for span in job.parts.done())} rows are done", file=sys.stderr)
        try:
            counts, seconds = compute(job, args)
            num_rows, num_failed = job.finish()
        except OSError as error:
            raise DatasetError(f"{job.out}: {error.strerror or error}; the same command goes on") from None
    seconds = max(seconds, 1e-9)
    return {
        "source": job.source,
        "out": job.out,
        "task": job.ask.task,
        "rows": num_rows,
        "failed": num_failed,
        "this_run": asdict(counts),
        "seconds": round(seconds, 2),
        "rows_per_s": round((counts.answered + counts.failed) / seconds, 1),
        "tokens_per_s": round(counts.tokens / seconds, 1),
    }


def job_of(args: Namespace) -> Job:
    """Raises DatasetError: the flags do not fit each other."""
    columns = Columns(args.text, args.text_pair, args.question_field, args.choices, args.separator)
    if args.task in PAIRS and columns.text_pair is None:
        columns = Columns(args.text, "text_pair")
    if args.task == "mrc" and columns.question is None:
        columns = Columns(args.text, None, "question", args.choices, args.separator)
    fields = dict(args.body)
    if args.labels:
        fields["labels"] = list(args.labels)
    if args.model is not None and args.url:
        fields["model"] = args.model
    suffix = format_of(args.out)
    if suffix is not None and args.format not in (None, suffix):
        raise DatasetError(f"--format {args.format}: {args.out} names another format")
    return Job(
        args.source,
        Ask(args.task, columns, fields),
        args.out,
        suffix or args.format or "jsonl",
        tuple(args.keep),
        args.encoding,
        args.model,
    )


def compute(job: Job, args: Namespace) -> tuple[Counts, float]:
    """Computes the parts that are left; how many rows, and in how many seconds."""
    source = job.opened
    with closing(tqdm(total=source.size, unit=source.unit, unit_scale=True, disable=None)) as bar:
        if args.ray is not None:
            started, settings = time.perf_counter(), settings_for(args.model)
            cluster = on_ray.Ray(args.ray, args.part_rows)
            with redirect_stdout(sys.stderr):  # Ray writes there what becomes of workers and nodes
                counts = on_ray.compute(job, cluster, partial(serve_device, settings), bar.update)
            return counts, time.perf_counter() - started
        work = Work(job, lambda part: bar.update(part.size))
        asyncio.run(run_here(work, args))
    return work.counts, work.seconds


async def run_here(work: Work, args: Namespace) -> None:
    if args.url:
        await work.run([HttpServer(url, args.key) for url in args.url])
        return
    async with serve(settings_for(args.model)) as client:
        await work.run([client])


CORPUS_DEFAULTS: Final = {"batching.batch_efficiency": 0.99, "server.bulk_window": 1024}
"""For throughput, not for the latency of a row: larger batches than those of `serve`, and more rows in the queue."""


def settings_for(models: str | None) -> Settings:
    """Those of `serve` in the environment, with these models. Raises SettingError."""
    typed = {"models.specs": models.split(",")} if models else {}
    return load({**typed, "log.level": "warning"}, defaults=CORPUS_DEFAULTS)


@asynccontextmanager
async def serve(settings: Settings) -> AsyncIterator[BulkClient]:
    """A client of the whole service in this process. Raises StartupError: a model cannot be started."""
    async with running(settings) as (app, application):
        yield InProcess(app, application.why_not_alive)


def serve_device(settings: Settings, device: on_ray.Device) -> AbstractAsyncContextManager[BulkClient]:
    """The service on the one device that an actor has."""
    return serve(settings_of(settings, device))


def settings_of(settings: Settings, device: on_ray.Device) -> Settings:
    given = {"devices": ("auto",) if device.num_gpus else ("cpu",), "threads": device.num_threads}
    return settings.model_copy(update={"replicas": settings.replicas.model_copy(update=given)})
