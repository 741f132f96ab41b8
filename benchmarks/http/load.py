"""The closed loop of these benchmarks: distinct rows of equal length, sent by the lean client of `service bench`."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import cycle
from pathlib import Path
from statistics import median

import numpy as np
import uvloop

from service.checkpoints.checkpoint import Checkpoint, resolve
from service.checkpoints.spec import parse_spec
from service.commands.models import SHIPPED, locate_shipped
from service.tasks.text_model import TextModel
from service.tools.bench.client import Client
from tests.support.servers import ENGINE_SERVER, Server, serving

LABELS = ("体育", "财经")
PATH = "/v1/classify"
NUM_TEXTS = 8192
"""More than ever wait: equal rows in flight would be computed once."""

WARM_UP_S = 1.0
NULL = ("--model", "mini", "--threads", "1", "--max-batch-tokens", "16384")
"""Flags of the server with the null engine; the budget is that of a fast GPU."""


def null_server(*flags: str, folder: Path | None = None) -> AbstractContextManager[Server]:
    """The real server with an engine that answers at once."""
    return serving(*NULL, *flags, module=(ENGINE_SERVER, "null"), folder=folder)


def shipped_checkpoint() -> Checkpoint:
    return resolve(locate_shipped(parse_spec(SHIPPED[0])))


def shipped_model() -> TextModel:
    return TextModel.load(shipped_checkpoint())


def make_texts(model: TextModel, row_tokens: int = 32) -> list[str]:
    """Distinct texts of random characters, each a row of `row_tokens`: the rest of the row is [CLS], two [SEP] and, for
    each label, a [MASK] and its characters."""
    length = row_tokens - 3 - sum(1 + len(label) for label in LABELS)
    characters = [word for word in model.tokenizer.get_vocab() if re.fullmatch("[\u4e00-\u9fff]", word)]
    rng = random.Random(1)
    return list(dict.fromkeys("".join(rng.choices(characters, k=length)) for _ in range(NUM_TEXTS)))


def bodies_of(texts: Sequence[str], inputs: int) -> list[bytes]:
    """Requests of `inputs` texts each."""
    groups = [texts[start : start + inputs] for start in range(0, len(texts), inputs)]
    return [json.dumps({"inputs": group, "labels": LABELS}, ensure_ascii=False).encode() for group in groups]


def in_turns(
    servers: Mapping[str, Server], bodies: Sequence[bytes], clients: int, arguments: Namespace
) -> dict[str, dict[str, float]]:
    """What `closed_loop` measures of each server, as medians over `arguments.turns`, each of `arguments.seconds`."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
    for _ in range(arguments.turns):
        for name, server in servers.items():
            found[name].append(uvloop.run(closed_loop(server, bodies, clients, arguments.seconds)))
    return {
        name: {key: round(median(turn[key] for turn in turns), 3) for key in turns[0]} for name, turns in found.items()
    }


async def closed_loop(server: Server, bodies: Sequence[bytes], clients: int, seconds: float) -> dict[str, float]:
    """Rate, latencies, and CPU time a request of parent and children. RuntimeError for any answer but 200."""
    client, source = Client("127.0.0.1", server.port), cycle(bodies)
    latencies: list[float] = []
    is_over = False

    async def send() -> None:
        while not is_over:
            started = time.perf_counter()
            reply = await client.send("POST", PATH, next(source))
            if reply.status != 200:
                raise RuntimeError(f"the server answers {reply.status}: {reply.body[:200]!r}")
            latencies.append(time.perf_counter() - started)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(send())
        await asyncio.sleep(WARM_UP_S)
        latencies.clear()
        before, started = server.cpu_s(), time.perf_counter()
        await asyncio.sleep(seconds)
        after, elapsed, taken = server.cpu_s(), time.perf_counter() - started, list(latencies)
        is_over = True
    client.close()
    p50, p99 = np.percentile(taken, (50, 99)) if taken else (float("nan"), float("nan"))
    parent, child = (1000 * (end - start) / max(1, len(taken)) for start, end in zip(before, after, strict=True))
    return {
        "requests_per_s": len(taken) / elapsed,
        "p50_ms": 1000 * float(p50),
        "p99_ms": 1000 * float(p99),
        "parent_cpu_ms": parent,
        "child_cpu_ms": child,
    }
