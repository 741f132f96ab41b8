"""One request from query to reply: encode, submit, decode; and where its time went.

Knows no HTTP, no queue and no process: it gets a `submit` and an executor to tokenise in.
"""

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
    """The batcher's face."""

    async def __call__(self, encodings: Sequence[Encoding], options: RequestOptions) -> RequestResult: ...


@dataclass(frozen=True, slots=True)
class Answer(Generic[R]):
    """Results in input order; `model` is the one that was chosen, `tokens` the sum over all rows."""

    model: str
    results: list[R]
    tokens: int
    timing: Timing


class Pipeline:
    """Answers queries of every task with the models at hand."""

    def __init__(
        self,
        models: Mapping[str, TextModel],
        submit: Submit,
        tokenizers: Executor,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._models = models
        self._submit = submit
        self._tokenizers = tokenizers
        self._metrics = metrics
        self._clock = clock

    @property
    def models(self) -> Mapping[str, TextModel]:
        return self._models

    async def answer(
        self,
        task: Task[Q, R],
        query: Q,
        *,
        model: str | None = None,
        options: RequestOptions = DEFAULT_OPTIONS,
        num_bytes: int | None = None,
        on_encoded: Callable[[int, int], None] = lambda rows, tokens: None,
    ) -> Answer[R]:
        """The deadline of `terms` is a time of the pipeline's clock; `num_bytes`, where it is known, the size of the
        query's text. `on_encoded` is told the rows and tokens before they are submitted.

        Raises what routing, encoding and batching raise.
        """
        started = self._clock()
        chosen = route(self._models, task, query, model)
        is_small = num_bytes is not None and num_bytes <= INLINE_BYTES
        encodings = (
            task.encode(chosen, query) if is_small else await self._encode(task, chosen, query, options.deadline)
        )
        encoded = self._clock()
        trace.current.get().stage("tokenize", encoded - started)
        tokens = self._count(task.name, chosen.name, encodings, encoded - started)
        on_encoded(len(encodings), tokens)
        settled = await self._submit(encodings, options)
        results = task.decode(chosen, query, encodings, settled.outputs)
        timing = Timing(encoded - started, settled.queue_s, settled.compute_s, self._clock() - started)
        self._metrics.answered(task.name, len(results), timing)
        self._count_decisions(task, chosen.name, query, results)
        return Answer(chosen.name, results, tokens, timing)

    async def _encode(self, task: Task[Q, R], model: TextModel, query: Q, deadline: float | None) -> list[Encoding]:
        """Tokenises off the event loop: the tokenizer lets go of the GIL, so other requests are read meanwhile."""
        loop = asyncio.get_running_loop()
        encoding = loop.run_in_executor(self._tokenizers, task.encode, model, query)
        try:
            async with asyncio.timeout(None if deadline is None else deadline - self._clock()):
                return await encoding
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the text was tokenised") from None

    def _count(self, task: str, model: str, encodings: Sequence[Encoding], seconds: float) -> int:
        """The tokens of all rows."""
        tokens = sum(row.num_tokens for row in encodings)
        truncated = sum(row.truncated for row in encodings)
        inputs = len(encodings)
        self._metrics.encoded(task, model, inputs=inputs, tokens=tokens, truncated=truncated, seconds=seconds)
        return tokens

    def _count_decisions(self, task: Task[Q, R], model: str, query: Q, results: Sequence[R]) -> None:
        if task.predict is not None:
            decided = [task.predict(query, result) for result in results]
            self._metrics.decided(task.name, model, [(each.label, each.score) for each in decided])
