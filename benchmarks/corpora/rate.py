"""How much of the engine's rate a batch job keeps.

    python -m benchmarks.corpora rate --json benchmarks/results/corpora.json

One replica with one thread is started in this process, as `python -m service batch` does. In each round the same rows
are computed in turn by the engine alone, in full batches, and by a batch job from a file to a file, with other rows
in each round. Texts are made up, with lengths lognormal (median 31 tokens, 95 % below 152). Both are measured in
seconds, and in seconds of CPU time, which other programs on the machine change less: of the engine, of the worker
process of the job, and of the process around it. `of_engine` is the job's rate over that of the engine. By CPU time
it is given for the worker alone, which holds where the process around it has a core of its own, and for both, which
holds where they share cores.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.common import about, auto_precision, parser_of, save, spread
from benchmarks.corpora.corpus import BODY, MODEL, made_up, write_corpus
from service.api.schemas import ClassifyRequest
from service.commands.batch import CORPUS_DEFAULTS, serve
from service.commands.models import fetch_checkpoint, parse_specs
from service.domain import Encoding
from service.engine.engine import Engine
from service.settings import Server, Settings
from service.settings_sources import load
from service.tasks import classification
from service.tasks.text_model import TextModel
from service.tools.corpora.asking import Ask, Columns
from service.tools.corpora.bulk_client import BulkClient
from service.tools.corpora.job import Job
from service.tools.corpora.work import Work


def main(argv: Sequence[str]) -> int:
    parser = parser_of("corpora rate", __doc__)
    parser.add_argument("--rows", type=int, default=2000, help="of each file (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--batch-tokens", type=int, default=3046, help="of the engine alone (default: %(default)s)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    settings = load({"models.specs": [MODEL], "replicas.threads": 1, "log.level": "warning"}, defaults=CORPUS_DEFAULTS)
    rounds = asyncio.run(measure(settings, arguments.rows, arguments.rounds, arguments.batch_tokens))
    document = {
        "what": "rate of a batch job over that of the engine alone, in turn",
        **about(arguments, argv, "torch", precision=auto_precision()),
        **{name: getattr(arguments, name) for name in ("rows", "batch_tokens")},
        "model": MODEL,
        "threads": 1,
        "of_engine": spread([one["engine_s"] / one["job_s"] for one in rounds]),
        "of_engine_by_cpu_of_worker": spread([one["engine_cpu_s"] / one["worker_cpu_s"] for one in rounds]),
        "of_engine_by_cpu_of_both": spread(
            [one["engine_cpu_s"] / (one["worker_cpu_s"] + one["process_cpu_s"]) for one in rounds]
        ),
        "rounds": rounds,
    }
    print(json.dumps({name: value for name, value in document.items() if name.startswith("of_")}, indent=2))
    save(document, arguments.json)
    return 0


async def measure(settings: Settings, num_rows: int, num_rounds: int, batch_tokens: int) -> list[dict[str, Any]]:
    [spec] = parse_specs(settings.models)
    checkpoint = fetch_checkpoint(spec, settings.models)
    engine, model = Engine.load(checkpoint), TextModel.load(checkpoint)
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        async with serve(settings) as client:
            for number in range(num_rounds + 1):
                texts = list(made_up(num_rows, seed=number))
                found = {**run_engine(engine, model, texts, batch_tokens), **await run_job(client, Path(name), texts)}
                if number:  # the first one warms up
                    rounds.append({name: round(value, 3) for name, value in found.items()})
                    print(json.dumps(rounds[-1]), file=sys.stderr)
    return rounds


def run_engine(engine: Engine, model: TextModel, texts: Sequence[str], batch_tokens: int) -> dict[str, float]:
    """Tokenization is not counted: the job does it in the process around the worker."""
    rows = []
    for text in texts:
        request = ClassifyRequest.model_validate({**BODY, "inputs": [text]}, context=Server())
        rows += classification.encode(model, request.query())
    started, cpu = time.perf_counter(), time.process_time()
    for batch in batches(rows, batch_tokens):
        engine.run(batch)
    return {
        "tokens": sum(row.num_tokens for row in rows),
        "engine_s": time.perf_counter() - started,
        "engine_cpu_s": time.process_time() - cpu,
    }


def batches(rows: Sequence[Encoding], max_tokens: int) -> Iterator[list[Encoding]]:
    batch: list[Encoding] = []
    for row in rows:
        if batch and sum(each.num_tokens for each in batch) + row.num_tokens > max_tokens:
            yield batch
            batch = []
        batch.append(row)
    yield batch


async def run_job(client: BulkClient, folder: Path, texts: Sequence[str]) -> dict[str, float]:
    source, out = folder / "in.jsonl", folder / "out.jsonl"
    write_corpus(source, texts)
    job = Job(str(source), Ask("classify", Columns(), BODY), str(out), "jsonl")
    [worker] = [one for one in psutil.Process().children(recursive=True) if "service.replicas.child" in one.cmdline()]
    started, cpu, of_worker = time.perf_counter(), time.process_time(), sum(worker.cpu_times()[:2])
    with job.parts.locked():
        job.begin(overwrite=True)
        await Work(job).run([client])
        num_rows, num_failed = job.finish()
    assert (num_rows, num_failed) == (len(texts), 0)
    return {
        "job_s": time.perf_counter() - started,
        "process_cpu_s": time.process_time() - cpu,
        "worker_cpu_s": sum(worker.cpu_times()[:2]) - of_worker,
    }
