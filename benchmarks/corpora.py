"""How much of the engine's rate a batch job keeps, and how much of that two actors on Ray keep.

    python -m benchmarks.corpora --json FILE
    python -m benchmarks.corpora --ray --json FILE      (requirements/ray.txt)

One replica with one thread is started in this process, as `python -m service batch` does. In each round the same rows
are computed in turn by the engine alone, in full batches, and by a batch job from a file to a file, with other rows
in each round. Texts are made up, with lengths lognormal (median 31 tokens, 95 % below 152). Both are measured in
seconds, and in seconds of CPU time, which other programs on the machine change less: of the engine, of the worker
process of the job, and of the process around it. `of_engine` is the job's rate over that of the engine. By CPU time
it is given for the worker alone, which holds where the process around it has a core of its own, and for both, which
holds where they share cores.

With `--ray` the contenders are two runs of `python -m service batch` at the same time, and one run with `--ray` on a
cluster of two nodes on this machine, each with one CPU, all of them with one thread a replica. In each round both
compute as many rows, `--rows` for each worker. The rate is that of the parts that are done after the first ones, so
that starts do not count. `of_two_runs` is the rate on Ray over the sum of those of the two runs. Ray's own processes
share the two cores with the workers, which have the priority of other programs, and not Ray's lower one.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.common import about, auto_precision, parser_of, save
from service.api.schemas import ClassifyRequest
from service.commands.batch import CORPUS_DEFAULTS, serve
from service.commands.models import fetch_checkpoint, parse_specs
from service.domain import Encoding
from service.engine.engine import Engine
from service.settings import Server, Settings
from service.settings_sources import load
from service.tasks import classification
from service.tasks.text_model import TextModel
from service.tools.bench.texts import Lengths
from service.tools.corpora.asking import Ask, Columns
from service.tools.corpora.bulk_client import BulkClient
from service.tools.corpora.job import Job
from service.tools.corpora.work import LANES, Work

BODY = {"labels": ["好评", "差评"], "method": "choice"}
LENGTHS = "lognormal:31:152"
CHARACTERS = "今天的一个新闻说我们公司产品很好但是价格有点高客户觉得服务还可以所以大家讨论了很久没有结果"
MODEL = "mini"
PART_ROWS = 500
"""Of a part on Ray: in a corpus as small as this one, parts of the default size would leave actors idle at its end."""


def main(argv: Sequence[str]) -> int:
    parser = parser_of("corpora", __doc__)
    parser.add_argument("--rows", type=int, default=2000, help="of each file (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--batch-tokens", type=int, default=3046, help="of the engine alone (default: %(default)s)")
    parser.add_argument("--ray", action="store_true", help="two actors on Ray against two runs")
    arguments = parser.parse_args(argv)
    if arguments.ray:
        save(compare_ray(arguments, argv), arguments.json)
        return 0
    torch.set_num_threads(1)
    settings = load({"models.specs": [MODEL], "replicas.threads": 1, "log.level": "warning"}, defaults=CORPUS_DEFAULTS)
    rounds = asyncio.run(measure(settings, arguments.rows, arguments.rounds, arguments.batch_tokens))
    document = {
        "what": "rate of a batch job over that of the engine alone, in turn",
        **about(arguments, argv, "torch", precision=auto_precision()),
        **{name: getattr(arguments, name) for name in ("rows", "batch_tokens")},
        "model": MODEL,
        "threads": 1,
        "of_engine": spread(rounds, lambda one: one["engine_s"] / one["job_s"]),
        "of_engine_by_cpu_of_worker": spread(rounds, lambda one: one["engine_cpu_s"] / one["worker_cpu_s"]),
        "of_engine_by_cpu_of_both": spread(
            rounds, lambda one: one["engine_cpu_s"] / (one["worker_cpu_s"] + one["process_cpu_s"])
        ),
        "rounds": rounds,
    }
    print(json.dumps({name: value for name, value in document.items() if name.startswith("of_")}, indent=2))
    save(document, arguments.json)
    return 0


def compare_ray(arguments: Namespace, argv: Sequence[str]) -> dict[str, Any]:
    rounds = []
    with tempfile.TemporaryDirectory() as name, nodes() as address:
        for number in range(arguments.rounds):
            half = write_corpus(Path(name) / "half.jsonl", made_up(arguments.rows, number))
            whole = write_corpus(Path(name) / "whole.jsonl", made_up(2 * arguments.rows, number))
            on_ray = (str(whole), "--ray", address, "--part-rows", str(PART_ROWS))
            one = {
                "two_runs_rows_per_s": sum(run_together([(str(half),), (str(half),)], num_lanes=LANES)),
                "ray_rows_per_s": sum(run_together([on_ray], num_lanes=2 * LANES)),
            }
            rounds.append({name: round(value, 1) for name, value in one.items()})
            print(json.dumps(rounds[-1]), file=sys.stderr)
    return {
        "what": "rate of two actors on Ray over that of two runs in their own processes",
        **about(arguments, argv, "torch", "ray", precision=auto_precision()),
        "rows": arguments.rows,
        "part_rows": PART_ROWS,
        "model": MODEL,
        "threads": 1,
        "of_two_runs": spread(rounds, lambda one: one["ray_rows_per_s"] / one["two_runs_rows_per_s"]),
        "rounds": rounds,
    }


@contextmanager
def nodes() -> Iterator[str]:
    """The address of a Ray cluster of two nodes with one CPU each."""
    os.environ |= {"RAY_worker_niceness": "0"}
    utils: Any = import_module("ray.cluster_utils")
    cluster = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster.address
    finally:
        cluster.shutdown()


def run_together(jobs: Sequence[Sequence[str]], num_lanes: int) -> list[float]:
    """The rows per second of each of some commands that start at the same time."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ERLANGSHEN_REPLICAS__THREADS": "1"}
    asked = ["--task", "classify", "--body", json.dumps(BODY), "--model", MODEL]
    with tempfile.TemporaryDirectory() as name:
        outs = [Path(name) / f"out-{number}.jsonl" for number in range(len(jobs))]
        commands = [
            [sys.executable, "-m", "service", "batch", job[0], str(out), *asked, *job[1:]]
            for out, job in zip(outs, jobs, strict=True)
        ]
        running = [subprocess.Popen(each, env=environment, stdout=subprocess.DEVNULL) for each in commands]
        with ThreadPoolExecutor(len(running)) as pool:
            return list(pool.map(partial(watch, num_lanes=num_lanes), running, outs))


def watch(process: subprocess.Popen[bytes], out: Path, num_lanes: int) -> float:
    """The rows per second of a run, from when as many parts are done as it has in work at a time."""
    done: dict[str, float] = {}
    while process.poll() is None:
        for part in Path(f"{out}.parts").glob("part-*"):
            done.setdefault(part.stem, time.perf_counter())
        time.sleep(0.02)
    if process.returncode:
        raise RuntimeError("a run has failed; its errors are above")
    ended = sorted((at, name) for name, at in done.items())
    num_rows = sum(int(end) - int(first) for _, first, end in (name.split("-") for _, name in ended[num_lanes:]))
    return num_rows / (ended[-1][0] - ended[num_lanes - 1][0])


def write_corpus(file: Path, texts: Iterable[str]) -> Path:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def spread(rounds: Sequence[dict[str, Any]], ratio: Callable[[dict[str, Any]], float]) -> dict[str, float]:
    values = sorted(map(ratio, rounds))
    return {
        "least": round(values[0], 3),
        "median": round(statistics.median(values), 3),
        "greatest": round(values[-1], 3),
    }


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


def made_up(num: int, seed: int) -> Iterator[str]:
    draw = random.Random(seed)
    for length in Lengths.parse(LENGTHS).draw(num, draw):
        yield "".join(draw.choices(CHARACTERS, k=max(4, length - 10)))


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
