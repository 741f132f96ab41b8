"""The pipeline with a fake task, a fake batcher and a tokenizer pool."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from service.batching.fair_threads import FairThreads
from service.batching.jobs import RequestResult
from service.domain import DEFAULT_OPTIONS, Encoding, Output, RequestOptions
from service.errors import DeadlineExceeded, InvalidRequest, ModelNotFound, QueueFull
from service.metrics import Metrics
from service.pipeline import INLINE_BYTES, Answer, Pipeline
from service.tasks.task import Task
from service.tasks.text_model import TextModel
from service.tracing import trace
from tests.fakes import FakeClock, make_metrics, row, total, value
from tests.unit.tracing.recording import RecordedTrace

pytestmark = pytest.mark.anyio
Query = list[list[int]]


def model(name: str = "m") -> TextModel:
    return TextModel(
        name,
        "encoder",
        (),
        (),
        512,
        Tokenizer(WordPiece({"[UNK]": 0}, unk_token="[UNK]")),
        cls=0,
        sep=1,
        mask=2,
        yes=None,
        no=None,
        hidden_size=8,
    )


def task(encode: object = None) -> Task[Query, float]:
    return Task("classify", lambda model, query: True, encode or _encode, _decode)  # type: ignore[arg-type]


def _encode(model: TextModel, query: Query) -> list[Encoding]:
    return [replace(row(*ids, model=model.name), truncated=len(ids) > 2) for ids in query]


def _decode(model: TextModel, query: Query, encodings: Sequence[Encoding], outputs: Sequence[Output]) -> list[float]:
    return [float(output.scores[0, 0]) for output in outputs]


class FakeBatcher:
    """Answers immediately; records its calls."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[tuple[list[str], RequestOptions]] = []
        self._error = error

    async def submit(self, encodings: Sequence[Encoding], options: RequestOptions = DEFAULT_OPTIONS) -> RequestResult:
        self.calls.append(([encoding.model for encoding in encodings], options))
        if self._error:
            raise self._error
        return RequestResult([total(encoding) for encoding in encodings], queue_s=0.25, compute_s=0.5)


@pytest.fixture
def tokenizers() -> Iterator[FairThreads]:
    with FairThreads(1) as threads:
        yield threads


def make(
    tokenizers: FairThreads,
    batcher: FakeBatcher,
    metrics: Metrics | None = None,
    clock: FakeClock | None = None,
) -> Pipeline:
    models = {"m": model("m"), "n": model("n")}
    return Pipeline(
        models, batcher.submit, tokenizers, metrics or make_metrics(("m", "n")), clock=clock or time.monotonic
    )


async def answer(
    pipeline: Pipeline,
    task: Task[Query, float],
    query: Query,
    *,
    model: str | None = None,
    options: RequestOptions = DEFAULT_OPTIONS,
    num_bytes: int | None = None,
) -> Answer[float]:
    encoded = await pipeline.encode(task, query, model=model, options=options, num_bytes=num_bytes)
    return await pipeline.compute(task, encoded, lambda answer: answer, options)


async def test_an_answer_has_results_in_order_tokens_and_timing() -> None:
    clock, batcher, metrics = FakeClock(), FakeBatcher(), make_metrics(("m", "n"))

    def encode(model: TextModel, query: Query) -> list[Encoding]:
        clock.now += 0.125
        return _encode(model, query)

    with FairThreads(1, clock) as threads:
        pipeline = make(threads, batcher, metrics, clock)
        reply = await answer(
            pipeline, task(encode), [[1, 2, 3], [4]], model="n", options=RequestOptions(clock.now + 9, 3)
        )
    assert (reply.model, reply.results, reply.tokens) == ("n", [6, 4], 4)
    timing = reply.timing
    assert (timing.tokenize, timing.queue, timing.compute, timing.total) == (0.125, 0.25, 0.5, 0.125)
    assert batcher.calls == [(["n", "n"], RequestOptions(109.0, 3))]
    assert value(metrics, "input_tokens_total", task="classify", model="n") == 4
    assert value(metrics, "inputs_total", task="classify", model="n") == 2
    assert value(metrics, "truncated_inputs_total", task="classify") == 1
    assert value(metrics, "request_stage_seconds_total", task="classify", stage="queue") == 0.25
    assert value(metrics, "request_inputs_sum", task="classify") == 2
    assert value(metrics, "tokenize_duration_seconds_count") == 1


async def test_several_rows_of_an_input_count_as_one_input(tokenizers: FairThreads) -> None:
    metrics = make_metrics(("m",))

    def encode(model: TextModel, query: Query) -> list[Encoding]:
        first, second, third = _encode(model, query)
        return [first, replace(second, continues=True), third]

    pipeline = make(tokenizers, FakeBatcher(), metrics)
    two = replace(task(encode), num_inputs=lambda query: 2)
    encoded = await pipeline.encode(two, [[1, 2, 3], [4, 5, 6], [7]])
    assert (encoded.num_inputs, len(encoded.rows), encoded.num_tokens) == (2, 3, 7)
    assert encoded.is_reply_large
    await pipeline.compute(task(), encoded, lambda answer: answer)
    assert value(metrics, "inputs_total", task="classify", model="m") == 2
    assert value(metrics, "truncated_inputs_total", task="classify") == 1
    assert value(metrics, "request_inputs_sum", task="classify") == 2


async def test_an_input_is_truncated_where_any_of_its_rows_is(tokenizers: FairThreads) -> None:
    metrics = make_metrics(("m",))

    def encode(model: TextModel, query: Query) -> list[Encoding]:
        """The second input in two rows, then a second row of each."""
        first, second, third, *again = _encode(model, query)
        return [first, second, replace(third, continues=True), *again]

    two = replace(task(encode), num_inputs=lambda query: 2)
    await make(tokenizers, FakeBatcher(), metrics).encode(two, [[1], [4], [5, 6, 7], [8], [9, 10, 11]])
    assert value(metrics, "inputs_total", task="classify", model="m") == 2
    assert value(metrics, "truncated_inputs_total", task="classify") == 1


async def test_the_trace_has_the_tokenize_stage(tokenizers: FairThreads) -> None:
    clock, mine = FakeClock(), RecordedTrace()

    def encode(model: TextModel, query: Query) -> list[Encoding]:
        clock.now += 0.125
        return _encode(model, query)

    token = trace.current.set(mine)
    await answer(make(tokenizers, FakeBatcher(), clock=clock), task(encode), [[1]])
    trace.current.reset(token)
    assert mine.stages == [("tokenize", 0.125)]


async def test_encode_counts_rows_and_tokens_before_compute_submits_them(tokenizers: FairThreads) -> None:
    batcher = FakeBatcher(QueueFull("full"))
    pipeline = make(tokenizers, batcher)
    encoded = await pipeline.encode(task(), [[1, 2], [3]])
    assert (len(encoded.rows), encoded.num_tokens) == (2, 3)
    assert batcher.calls == []
    with pytest.raises(QueueFull):
        await pipeline.compute(task(), encoded, lambda answer: answer)


async def test_the_first_model_that_supports_the_task_is_the_default(tokenizers: FairThreads) -> None:
    assert (await answer(make(tokenizers, FakeBatcher()), task(), [[1]])).model == "m"


async def test_an_unknown_model_is_refused_before_encoding(tokenizers: FairThreads) -> None:
    batcher, metrics = FakeBatcher(), make_metrics(("m", "n"))
    with pytest.raises(ModelNotFound):
        await answer(make(tokenizers, batcher, metrics), task(), [[1]], model="x")
    assert batcher.calls == []
    assert value(metrics, "tokenize_duration_seconds_count") == 0


async def test_errors_of_encoding_and_batching_are_raised(tokenizers: FairThreads) -> None:
    def refuse(model: TextModel, query: Query) -> list[Encoding]:
        raise InvalidRequest.of("inputs[0]", "is empty")

    batcher = FakeBatcher(QueueFull("full"))
    with pytest.raises(InvalidRequest):
        await answer(make(tokenizers, batcher), task(refuse), [[1]])
    with pytest.raises(QueueFull):
        await answer(make(tokenizers, batcher), task(), [[1]])


async def test_text_is_tokenised_off_the_event_loop(tokenizers: FairThreads) -> None:
    threads: list[int] = []

    def encode(model: TextModel, query: Query) -> list[Encoding]:
        threads.append(threading.get_ident())
        return _encode(model, query)

    await answer(make(tokenizers, FakeBatcher()), task(encode), [[1]])
    assert threads != [threading.get_ident()]


async def test_a_short_text_is_tokenised_on_the_event_loop(tokenizers: FairThreads) -> None:
    threads: list[int] = []

    def encode(model: TextModel, query: Query) -> list[Encoding]:
        threads.append(threading.get_ident())
        return _encode(model, query)

    pipeline = make(tokenizers, FakeBatcher())
    await answer(pipeline, task(encode), [[1]], num_bytes=INLINE_BYTES)
    await answer(pipeline, task(encode), [[1]], num_bytes=INLINE_BYTES + 1)
    assert [thread == threading.get_ident() for thread in threads] == [True, False]


async def test_a_request_cancelled_or_expired_in_the_queue_is_not_tokenised(tokenizers: FairThreads) -> None:
    gate, entered, batcher = threading.Event(), asyncio.Event(), FakeBatcher()
    loop = asyncio.get_running_loop()
    tokenised: list[Query] = []

    def encode(model: TextModel, query: Query) -> list[Encoding]:
        tokenised.append(query)
        loop.call_soon_threadsafe(entered.set)
        gate.wait()
        return _encode(model, query)

    pipeline = make(tokenizers, batcher)
    first = asyncio.create_task(answer(pipeline, task(encode), [[1]]))
    await entered.wait()
    late = asyncio.create_task(answer(pipeline, task(encode), [[2]], options=RequestOptions(time.monotonic() + 0.01)))
    gone = asyncio.create_task(answer(pipeline, task(encode), [[3]]))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(DeadlineExceeded):
        await late
    gate.set()
    assert (await first).results == [1]
    assert gone.cancelled()
    assert tokenised == [[[1]]]
    assert len(batcher.calls) == 1
