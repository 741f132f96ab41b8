"""What each step of a request costs by itself, for `benchmarks.front`: CPU time of the functions that a request calls.

Knows no server: what is left of a request's CPU time after these steps is HTTP, the event loop, the queue, metrics and
the log.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

import numpy as np
import orjson

from benchmarks.front_client import LABELS
from service.api import schemas
from service.api.protocols.native import parse
from service.api.request import parse_json
from service.domain import Output
from service.replicas.protocol import Batch, Frames, Result, frame
from service.settings import Server
from service.tasks.classification import CLASSIFY
from service.tasks.text_model import TextModel

CALLS = 200
TURNS = 7


def stages_us(model: TextModel, texts: Sequence[str]) -> dict[str, float]:
    """Microseconds of CPU in the parent for one request with these texts, by step."""
    data = json.dumps({"inputs": texts, "labels": LABELS}, ensure_ascii=False).encode()
    query = parse(parse_json(data), schemas.ClassifyRequest, Server()).query()
    rows = CLASSIFY.encode(model, query)
    outputs: list[Output | None] = [Output(np.zeros((len(LABELS), 2), dtype=np.float32)) for _ in rows]
    result, frames = frame(Result(0, outputs, 0.0)), Frames()
    answered = [output for output in outputs if output is not None]
    reply = {"results": CLASSIFY.decode(model, query, rows, answered)}
    steps: dict[str, Callable[[], object]] = {
        "JSON and validation": lambda: parse(parse_json(data), schemas.ClassifyRequest, Server()).query(),
        "tokens": lambda: model.tokenize([*texts, *LABELS]),
        "tokens and rows": lambda: CLASSIFY.encode(model, query),
        "batch to bytes": lambda: frame(Batch(0, rows)),
        "result from bytes": lambda: list(frames.feed(result)),
        "scores": lambda: CLASSIFY.decode(model, query, rows, answered),
        "reply as JSON": lambda: orjson.dumps(reply),
    }
    return {name: round(1e6 * _cpu_s(step), 1) for name, step in steps.items()}


def _cpu_s(step: Callable[[], object]) -> float:
    """The best of a few turns: what disturbs a measurement only ever adds to it."""
    return min(_turn(step) for _ in range(TURNS))


def _turn(step: Callable[[], object]) -> float:
    started = time.process_time()
    for _ in range(CALLS):
        step()
    return (time.process_time() - started) / CALLS
