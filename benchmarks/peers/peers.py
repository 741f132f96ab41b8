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
    onnx: Path | None = None
    """The folder of the same model for the runtimes."""


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
    """Packages whose versions are reported."""
    environment_name: str = ""
    """That of its requirements and its folder; empty for the server's own name."""
    environment: dict[str, str] = field(default_factory=dict)
    is_batching: bool = True
    precisions: tuple[str, ...] = ("float32",)
    """Those that it computes in."""
    is_exported: bool = False
    """Whether it reads the model as ONNX."""

    @property
    def installed_as(self) -> str:
        return self.environment_name or self.name

    def request(self, text: str) -> bytes:
        return json.dumps(self.body(text), ensure_ascii=False).encode()


def _pair(reply: Reply) -> tuple[str, float]:
    return reply["label"], reply["score"]


def _ours(place: Place) -> Sequence[str | Path]:
    is_quantized = place.precision == "int8"
    precision, quantization = ("auto", "int8") if is_quantized else (place.precision, "none")
    how = ["--threads", str(place.threads), "--precision", precision, "--quantization", quantization]
    where = ["--model", f"peer={place.model}", "--port", str(place.port), "--log-level", "warning"]
    return [place.python, "-m", "service", "serve", *where, *how]


def ours() -> Server:
    return Server(
        name="ours",
        how="python -m service serve, defaults but for threads, precision and quantization",
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


def _runtime(runtime: str, title: str, rows: int, precisions: tuple[str, ...]) -> Server:
    """Behind a plain FastAPI front: with one row at a time, or with batches of what waits."""
    return Server(
        name=runtime if rows == 1 else f"{runtime} batches",
        how=f"FastAPI and {title}, " + ("one text at a time" if rows == 1 else f"padded batches of what waits, {rows}"),
        command=_script("runtime", runtime, str(rows)),
        path="/classify",
        body=lambda text: {"text": text},
        read=_pair,
        packages=("fastapi", runtime, *(("nncf",) if runtime == "openvino" else ())),
        environment_name="runtimes",
        is_batching=rows > 1,
        precisions=precisions,
        is_exported=True,
    )


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
    *(_runtime("onnxruntime", "ONNX Runtime", rows, ("float32", "int8")) for rows in (1, 16)),
    *(_runtime("openvino", "OpenVINO", rows, ("float32", "bfloat16", "int8")) for rows in (1, 16)),
)


OUR_PYTHON = Path(sys.executable)
