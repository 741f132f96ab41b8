"""One request from query to answer: encode, compute, decode; and the timing of each stage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from service.batching.jobs import RequestResult
from service.domain import DEFAULT_OPTIONS, Encoding, RequestOptions, Timing
from service.errors import DeadlineExceeded
from service.metrics import Metrics
from service.tasks.registry import route
from service.tasks.task import Task
from service.tasks.text_model import TextModel
from service.tracing import trace

INLINE_BYTES = 4096
"""A query no longer than this is tokenised on the event loop: mostly in less time than a thread takes to wake, at worst
in a few milliseconds."""

Q = TypeVar("Q")
R = TypeVar("R")


class Submit(Protocol):
    """`Batcher.submit`."""

    async def __call__(self, encodings: Sequence[Encoding], options: RequestOptions) -> RequestResult: ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """A query as rows for one model; `num_tokens` is the sum over all rows, `seconds` the time that it took."""

    model: TextModel
    rows: Sequence[Encoding]
    num_tokens: int
    started: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Answer(Generic[R]):
    """Results in input order; `model` is the one that was chosen, `tokens` the sum over all rows."""

    model: str
    results: list[R]
    tokens: int
    timing: Timing


class Pipeline:
    """Answers queries of every task with the `models` that are served."""

    def __init__(
        self,
        models: Mapping[str, TextModel],
        submit: Submit,
        tokenizers: Executor,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.models = models
        self._submit = submit
        self._tokenizers = tokenizers
        self._metrics = metrics
        self._clock = clock

    async def encode(
        self,
        task: Task[Q, R],
        query: Q,
        *,
        model: str | None = None,
        options: RequestOptions = DEFAULT_OPTIONS,
        num_bytes: int | None = None,
    ) -> Encoded:
        """Chooses the model and tokenises. `num_bytes` is the size of the query's text, where it is known.

        Raises what routing and encoding raise, and DeadlineExceeded.
        """
        started = self._clock()
        chosen = route(self.models, task, query, model)
        if num_bytes is not None and num_bytes <= INLINE_BYTES:
            rows = task.encode(chosen, query)
        else:
            rows = await self._encode_in_thread(task, chosen, query, options.deadline)
        seconds = self._clock() - started
        num_tokens, num_truncated = sum([row.num_tokens for row in rows]), sum([row.truncated for row in rows])
        trace.current.get().stage("tokenize", seconds)
        self._metrics.encoded(
            task.name,
            chosen.name,
            inputs=len(rows),
            tokens=num_tokens,
            truncated=num_truncated,
            seconds=seconds,
        )
        return Encoded(chosen, rows, num_tokens, started, seconds)

    async def compute(
        self, task: Task[Q, R], query: Q, encoded: Encoded, options: RequestOptions = DEFAULT_OPTIONS
    ) -> Answer[R]:
        """Computes the rows and decodes them. Raises what batching raises."""
        result = await self._submit(encoded.rows, options)
        results = task.decode(encoded.model, query, encoded.rows, result.outputs)
        decisions = [] if task.predict is None else [task.predict(query, each) for each in results]
        timing = Timing(encoded.seconds, result.queue_s, result.compute_s, self._clock() - encoded.started)
        self._metrics.answered(task.name, encoded.model.name, len(results), timing, decisions)
        return Answer(encoded.model.name, results, encoded.num_tokens, timing)

    async def _encode_in_thread(
        self, task: Task[Q, R], model: TextModel, query: Q, deadline: float | None
    ) -> list[Encoding]:
        """Tokenises off the event loop: the tokenizer releases the GIL, so other requests are read meanwhile."""
        loop = asyncio.get_running_loop()
        encoding = loop.run_in_executor(self._tokenizers, task.encode, model, query)
        try:
            async with asyncio.timeout(None if deadline is None else deadline - self._clock()):
                return await encoding
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the text was tokenised") from None
