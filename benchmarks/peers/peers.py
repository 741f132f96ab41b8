"""The servers that are compared, ours included: command, request and response of each.

All compute with the same number of threads. Every peer that can batches dynamically, 16 texts at most.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SERVERS = Path(__file__).parent / "servers"
Reply = Any


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server runs, and with what."""

    python: Path
    model: Path
    port: int
    threads: int
    precision: str


@dataclass(frozen=True, slots=True)
class Server:
    """`command` starts it; `body` asks for the label of one text, `read` finds label and score in the reply."""

    name: str
    how: str
    command: Callable[[Place], Sequence[str | Path]]
    path: str
    body: Callable[[str], dict[str, Any]]
    read: Callable[[Reply], tuple[str, float]]
    packages: tuple[str, ...] = ()
    """Packages whose versions are reported, in the environment of the server's name."""
    environment: dict[str, str] = field(default_factory=dict)
    is_batching: bool = True
    precisions: tuple[str, ...] = ("float32",)
    """Those that it computes in."""

    def request(self, text: str) -> bytes:
        return json.dumps(self.body(text), ensure_ascii=False).encode()


def _pair(reply: Reply) -> tuple[str, float]:
    return reply["label"], reply["score"]


def _ours(place: Place) -> Sequence[str | Path]:
    flags = ["--threads", str(place.threads), "--precision", place.precision, "--log-level", "warning"]
    return [place.python, "-m", "service", "serve", "--model", f"peer={place.model}", "--port", str(place.port), *flags]


def ours() -> Server:
    return Server(
        name="ours",
        how="python -m service serve, defaults but for threads and precision",
        command=_ours,
        path="/v1/classify",
        body=lambda text: {"inputs": text},
        read=lambda reply: _pair(reply["results"][0]),
    )


def _infinity(place: Place) -> Sequence[str | Path]:
    program = place.python.parent / "infinity_emb"
    where = ["--host", "127.0.0.1", "--port", str(place.port), "--served-model-name", "peer"]
    how = ["--engine", "torch", "--device", "cpu", "--no-bettertransformer", "--batch-size", "16", "--no-model-warmup"]
    quiet = ["--log-level", "warning"]
    return [program, "v2", "--model-id", place.model, *where, *how, *quiet, "--dtype", place.precision]


def _script(name: str, *flags: str) -> Callable[[Place], Sequence[str | Path]]:
    def command(place: Place) -> Sequence[str | Path]:
        return [place.python, SERVERS / f"{name}_server.py", *flags, str(place.port)]

    return command


def _bentoml(place: Place) -> Sequence[str | Path]:
    program = place.python.parent / "bentoml"
    where = ["--host", "127.0.0.1", "--port", str(place.port), "--working-dir", SERVERS]
    return [program, "serve", "bentoml_server:Classify", *where]


PEERS = (
    Server(
        name="infinity",
        how="batch size 16, torch engine without bettertransformer (it has no MegatronBert)",
        command=_infinity,
        path="/classify",
        body=lambda text: {"model": "peer", "input": [text]},
        read=lambda reply: _pair(reply["data"][0][0]),
        packages=("infinity_emb", "torch", "transformers"),
        environment={"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"},
        precisions=("float32", "bfloat16"),
    ),
    Server(
        name="litserve",
        how="max_batch_size 16, batch_timeout 5 ms, one worker",
        command=_script("litserve"),
        path="/predict",
        body=lambda text: {"text": text},
        read=_pair,
        packages=("litserve", "torch", "transformers"),
    ),
    Server(
        name="mosec",
        how="max_batch_size 16, max_wait_time 5 ms, one worker",
        command=_script("mosec", "--timeout", "120000", "--address", "127.0.0.1", "--port"),
        path="/inference",
        body=lambda text: {"text": text},
        read=_pair,
        packages=("mosec", "torch", "transformers"),
    ),
    Server(
        name="bentoml",
        how="adaptive batching, max_batch_size 16, one worker",
        command=_bentoml,
        path="/classify",
        body=lambda text: {"texts": [text]},
        read=lambda reply: _pair(reply[0]),
        packages=("bentoml", "torch", "transformers"),
        environment={"BENTOML_DO_NOT_TRACK": "True"},
    ),
    Server(
        name="naive",
        how="FastAPI and transformers' pipeline, one text at a time",
        command=_script("naive"),
        path="/classify",
        body=lambda text: {"text": text},
        read=_pair,
        packages=("fastapi", "torch", "transformers"),
        is_batching=False,
        precisions=("float32", "bfloat16"),
    ),
)


OUR_PYTHON = Path(sys.executable)
