"""The real server under load from this process: started on a model, put on cores of its own, its memory watched."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks import about
from benchmarks.local_server import free_port, running
from service.tools.bench.texts import Lengths, make_text

LENGTHS = "lognormal:31:152"
SAMPLE_S = 0.5


def parser_of(name: str, doc: str | None) -> ArgumentParser:
    """Of a benchmark that loads such a server."""
    parser = about.parser_of(name, doc)
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    return parser


@dataclass(slots=True)
class Server:
    """The service in processes of its own, and the memory that they take."""

    port: int
    process: psutil.Process
    samples: list[tuple[float, list[int]]] = field(default_factory=list)

    def take_apart(self) -> None:
        """The replica on the first core, its parent and this process on the others: a client takes nothing from
        computing."""
        first, *others = sorted(os.sched_getaffinity(0))
        if others:
            os.sched_setaffinity(0, others)
            self.process.cpu_affinity(others)
            for child in self.process.children():
                child.cpu_affinity([first])

    async def watch(self) -> None:
        while True:
            parts = [self.process, *self.process.children()]
            self.samples.append((time.perf_counter(), [part.memory_info().rss for part in parts]))
            await asyncio.sleep(SAMPLE_S)

    def most_mb(self, start: float, end: float) -> list[float]:
        """Of the parent and of its child, in this time."""
        sizes = [sizes for at, sizes in self.samples if start <= at <= end]
        return [round(max(each) / 1e6, 1) for each in zip(*sizes, strict=True)]


@contextmanager
def serving(source: str, port: int, *flags: str) -> Iterator[Server]:
    """One compute thread; a port of 0 is a free one."""
    port = port or free_port()
    cores = os.sched_getaffinity(0)
    words = ("serve", "--port", str(port), "--threads", "1", *flags, "--model", f"m={source}")
    with running(port, "service", *words) as process:
        try:
            server = Server(port, psutil.Process(process.pid))
            server.take_apart()
            yield server
        finally:
            os.sched_setaffinity(0, cores)


def source_of(name: str, folder: Path) -> str:
    """`mini`, the model that ships, or `small`, a classifier of 6 layers, 384 wide, made in this folder."""
    if name == "mini":
        return name
    from benchmarks.peers.checkpoint import make_checkpoint  # imports torch and transformers

    return str(make_checkpoint(folder))


def texts(num: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [make_text(length, rng) for length in Lengths.parse(LENGTHS).draw(num, rng)]


def message(body: dict[str, Any], **headers: str) -> bytes:
    """A whole request to /v1/classify; a header's name is written with underscores."""
    data = json.dumps(body, ensure_ascii=False).encode()
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\n{lines}Content-Length: {len(data)}\r\n\r\n"
    return head.encode() + data
