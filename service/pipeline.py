"""One request from query to answer: encode, compute, decode; and the timing of each stage."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from service.batching.fair_threads import FairThreads
from service.batching.jobs import RequestResult
from service.domain import DEFAULT_OPTIONS, Encoding, RequestOptions, Timing
from service.errors import InvalidRequest, ServiceError
from service.metric_labels import UsedMethod
from service.metrics import Metrics
from service.tasks.registry import route
from service.tasks.task import Prediction, Task
from service.tasks.text_model import TextModel
from service.tracing import trace

INLINE_BYTES = 4096
"""A query no longer than this is tokenised on the event loop: mostly in less time than a thread takes to wake, at worst
in a few milliseconds."""
INLINE_REPLY_BYTES = 32_768
"""A reply no longer than this is decoded on the event loop."""
INLINE_ROWS = 64
"""Of as many rows, the second stage is encoded on the event loop; and of as many rows of labels, vectors are made
there, which learns from examples."""
MAX_REPLY_BYTES = 16 * 2**20

Q = TypeVar("Q")
R = TypeVar("R")
W = TypeVar("W")


class Submit(Protocol):
    """`Batcher.submit`."""

    async def __call__(self, encodings: Sequence[Encoding], options: RequestOptions) -> RequestResult: ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """A query as rows; `model` is the one that was chosen, `seconds` the time that it took, `reply_bytes` an estimate.

    `num_rows` and `num_tokens` are those that have to be computed: all but kept ones that are there. `input_tokens` are
    those of the inputs alone. `first` is the result of the last rows, where they are computed: see `advance`.
    """

    query: Any
    model: TextModel
    rows: Sequence[Encoding]
    num_inputs: int
    num_rows: int
    num_tokens: int
    input_tokens: int
    reply_bytes: int
    started: float
    seconds: float
    method: UsedMethod | None = None
    first: RequestResult | None = None

    @property
    def label_tokens(self) -> int:
        """Tokens of labels whose vectors are computed for this request."""
        return self.num_tokens - self.input_tokens

    @property
    def is_reply_large(self) -> bool:
        """Whether the reply is made off the event loop. Of a passage of 250 windows it takes a tenth of a second."""
        if self.reply_bytes > INLINE_REPLY_BYTES or any(row.continues for row in self.rows):
            return True
        return len(self.rows) > INLINE_ROWS and sum([row.kept_as is not None for row in self.rows]) > INLINE_ROWS


@dataclass(frozen=True, slots=True)
class Answer(Generic[R]):
    """Results in input order; `model` is the one that was chosen, `tokens` the sum over all inputs.

    `method` is set by tasks that have several, and `models` are then those that took part. `label_tokens` are those of
    labels whose vectors were computed for this request.
    """

    model: str
    results: list[R]
    tokens: int
    timing: Timing
    method: UsedMethod | None = None
    models: tuple[str, ...] = ()
    label_tokens: int = 0


class Pipeline:
    """Answers queries of every task with the `models` that are served. Long computations are done by the `threads`."""

    def __init__(
        self,
        models: Mapping[str, TextModel],
        submit: Submit,
        threads: FairThreads,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        is_kept: Callable[[Encoding], bool] = lambda encoding: False,
    ) -> None:
        self.models = models
        self.threads = threads
        self._submit = submit
        self._metrics = metrics
        self._clock = clock
        self._max_reply_bytes = max_reply_bytes
        self._is_kept = is_kept

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

        Raises what routing and encoding raise, DeadlineExceeded, and InvalidRequest for too large a reply.
        """
        started = self._clock()
        chosen = route(self.models, task, query, model)
        reply_bytes = self._check_reply(task, chosen, query)
        query = task.bind(chosen, query)
        if num_bytes is not None and num_bytes <= INLINE_BYTES:
            rows = task.encode(chosen, query)
        else:
            rows = await self.threads.run(options, partial(task.encode, chosen, query))
        seconds = self._clock() - started
        trace.current.get().stage("tokenize", seconds)
        method = None if task.method is None else task.method(rows)
        if task.num_inputs is not None and len(rows) > (num_inputs := task.num_inputs(query)):
            return self._count_several(task, query, chosen, rows, num_inputs, reply_bytes, started, seconds, method)
        num_rows, num_tokens = len(rows), sum([row.num_tokens for row in rows])
        num_truncated = sum([row.truncated for row in rows])
        self._metrics.encoded(task.name, chosen.name, inputs=num_rows, tokens=num_tokens, truncated=num_truncated)
        self._metrics.tokenized(seconds)
        return Encoded(
            query, chosen, rows, num_rows, num_rows, num_tokens, num_tokens, reply_bytes, started, seconds, method
        )

    def _count_several(
        self,
        task: Task[Q, R],
        query: Q,
        model: TextModel,
        rows: Sequence[Encoding],
        num_inputs: int,
        reply_bytes: int,
        started: float,
        seconds: float,
        method: UsedMethod | None,
    ) -> Encoded:
        """Counts a query with several rows per input, of up to two models: its inputs once, its tokens by model."""
        of_inputs = [row for row in rows if row.kept_as is None]
        missing = [row for row in rows if row.kept_as is not None and not self._is_kept(row)]
        num_truncated = _count_truncated(of_inputs, num_inputs)
        tokens: Counter[str] = Counter({model.name: 0})
        for row in (*of_inputs, *missing):
            tokens[row.model] += row.num_tokens
        for name, num_tokens in tokens.items():
            is_first = name == model.name
            inputs, truncated = (num_inputs, num_truncated) if is_first else (0, 0)
            self._metrics.encoded(task.name, name, inputs=inputs, tokens=num_tokens, truncated=truncated)
        self._metrics.tokenized(seconds)
        return Encoded(
            query,
            model,
            rows,
            num_inputs,
            num_rows=len(of_inputs) + len(missing),
            num_tokens=tokens.total(),
            input_tokens=sum([row.num_tokens for row in of_inputs]),
            reply_bytes=reply_bytes,
            started=started,
            seconds=seconds,
            method=method,
        )

    async def advance(self, task: Task[Q, R], encoded: Encoded, options: RequestOptions = DEFAULT_OPTIONS) -> Encoded:
        """Computes the rows of a query with two stages, and encodes those of the second one, which come first in what
        is returned. Any other query is returned as it is. Raises what encoding and batching raise.
        """
        if task.follow is None or not task.has_second_stage(encoded.model, encoded.query):
            return encoded
        first = await self._compute_rows(encoded, encoded.rows, options)
        started = self._clock()
        follow = partial(task.follow, encoded.model, encoded.query, encoded.rows, first.outputs)
        rows = await self.threads.run(options, follow) if len(encoded.rows) > INLINE_ROWS else follow()
        seconds = self._clock() - started
        trace.current.get().stage("tokenize", seconds)
        num_tokens = sum([row.num_tokens for row in rows])
        num_truncated = _count_truncated(rows, encoded.num_inputs)
        if rows:
            self._metrics.encoded(task.name, rows[0].model, inputs=0, tokens=num_tokens, truncated=num_truncated)
        both = [*rows, *encoded.rows]
        return replace(
            encoded,
            rows=both,
            num_rows=encoded.num_rows + len(rows),
            num_tokens=encoded.num_tokens + num_tokens,
            input_tokens=encoded.input_tokens + num_tokens,
            seconds=encoded.seconds + seconds,
            method=None if task.method is None else task.method(both),
            first=first,
        )

    async def compute(
        self,
        task: Task[Q, R],
        encoded: Encoded,
        write: Callable[[Answer[R]], W],
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> W:
        """Computes the rows, decodes them, and returns what `write` makes of the answer. Raises what batching raises.

        Large results are decoded and written in one go in a thread: they never wait there, and are freed there.
        """
        outcome = await self._submit_rest(encoded, options)
        finish = partial(self._finish, task, encoded, outcome, write)
        timing, decisions, written = await self.threads.run(options, finish) if encoded.is_reply_large else finish()
        self._metrics.answered(task.name, encoded.model.name, encoded.num_inputs, timing, decisions)
        if encoded.method is not None:
            self._metrics.answered_by(task.name, encoded.method)
        return written

    async def _submit_rest(self, encoded: Encoded, options: RequestOptions) -> RequestResult:
        """The outputs of all rows, of which those of `first` are there."""
        first = encoded.first
        if first is None:
            return await self._compute_rows(encoded, encoded.rows, options)
        last = len(encoded.rows) - len(first.outputs)
        if not last:
            return first
        rest = await self._compute_rows(encoded, encoded.rows[:last], options)
        outputs = [*rest.outputs, *first.outputs]
        return RequestResult(outputs, first.queue_s + rest.queue_s, first.compute_s + rest.compute_s)

    async def _compute_rows(self, encoded: Encoded, rows: Sequence[Encoding], options: RequestOptions) -> RequestResult:
        try:
            return await self._submit(rows, options)
        except ServiceError as error:
            if error.row is None:
                raise
            field = _field_of(rows, error.row, encoded.num_inputs)
            raise type(error).of(field, error.detail) from None

    def _finish(
        self, task: Task[Q, R], encoded: Encoded, outcome: RequestResult, write: Callable[[Answer[R]], W]
    ) -> tuple[Timing, list[Prediction], W]:
        query: Q = encoded.query
        results = task.decode(encoded.model, query, encoded.rows, outcome.outputs)
        predict = task.predict if task.decides(encoded.model) else None
        decisions = [] if predict is None else [predict(query, each) for each in results]
        timing = Timing(encoded.seconds, outcome.queue_s, outcome.compute_s, self._clock() - encoded.started)
        name, tokens = encoded.model.name, encoded.input_tokens
        if encoded.method is None:
            return timing, decisions, write(Answer(name, results, tokens, timing))
        models = tuple(dict.fromkeys((encoded.rows[0].model, encoded.rows[-1].model)))
        answer = Answer(models[0], results, tokens, timing, encoded.method, models, encoded.label_tokens)
        return timing, decisions, write(answer)

    def _check_reply(self, task: Task[Q, R], model: TextModel, query: Q) -> int:
        """An estimate of the reply's size: a request of some kilobytes can ask for gigabytes."""
        size, limit = task.reply_bytes(model, query), self._max_reply_bytes
        if size > limit:
            detail = f"the response would have about {size} bytes, at most {limit} are sent"
            raise InvalidRequest.of("inputs", f"{detail}; send fewer inputs, shorter labels or a smaller top_k")
        return size


def _field_of(rows: Sequence[Encoding], row: int, num_inputs: int) -> str:
    """The field of the query that a row was made of."""
    if rows[row].kept_as is not None:
        return "labels"
    index = sum([not each.continues for each in rows[: row + 1]]) - 1
    return f"inputs[{index % num_inputs}]"


def _count_truncated(rows: Sequence[Encoding], num_inputs: int) -> int:
    """The inputs of which a text was cut; `rows` are all of theirs, one group of rows after the other."""
    truncated, index = set(), -1
    for row in rows:
        index += not row.continues
        if row.truncated:
            truncated.add(index % num_inputs)
    return len(truncated)
