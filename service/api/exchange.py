"""One request on its way from a protocol's wire model to its response, the same for every protocol.

A handler makes a query of the wire model and calls `answer`, which chooses the model, charges the tokens, reserves the
memory, waits for the queue and counts the metrics. A function of the protocol writes the response, in a thread where it
is large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response

from service.api.label_set_routes import enabled
from service.api.memory import ROW_BYTES, TOKEN_BYTES
from service.api.problems import with_fields
from service.api.request import Headers, RequestContext
from service.api.schemas import ClassifyRequest, LabelSetBody
from service.api.state import ServiceState
from service.domain import RANKS, Priority, RequestOptions, Timing, TokenScores
from service.errors import ServiceError
from service.pipeline import Answer, Encoded
from service.settings import Server
from service.slices import between_slices
from service.stores.label_sets import LabelSet
from service.tasks.classify_query import ClassifyQuery
from service.tasks.registry import TASKS, names_of
from service.tasks.task import Task

SLICE_ITEMS = 5000
"""Of a large reply, written at once: a few milliseconds."""
PRIORITIES = {rank: name for name, rank in RANKS.items()}

W = TypeVar("W")
Write = Callable[[Answer[Any], bool], W]
"""Makes something of an answer; True says that it is large, and written in a thread."""
Rename = Callable[[str], str]
"""From the path of a field in a task's query, as in `inputs[3]`, to the path in the request."""


@dataclass(slots=True)
class Exchange:
    """One request whose headers have been read. `started` is a time of the clock of the pipeline's deadlines."""

    state: ServiceState
    limits: Server
    request: Request
    context: RequestContext
    headers: Headers
    options: RequestOptions
    started: float
    num_bytes: int = 0
    """Of the body. The text of a query of few bytes is tokenised on the event loop."""

    def narrow(self, *, timeout_ms: int | None = None, priority: Priority | None = None) -> None:
        """Applies what the body says about the deadline and the priority; once for every request that has a body."""
        self.options = self.headers.narrow(
            self.options, self.started, self.limits, timeout_ms=timeout_ms, priority=priority
        )
        self.context.priority = PRIORITIES[self.options.priority]

    async def answer(
        self,
        task: str,
        query: Any,
        write: Write[W],
        *,
        model: str | None = None,
        rename: Rename | None = None,
    ) -> W:
        """Computes the answer to a query, and returns what `write` makes of it.

        `rename` is for the fields in errors. Raises what the pipeline raises, and MemoryFull.
        """
        try:
            return await self._answer(task, query, write, model)
        except ServiceError as error:
            if not error.errors or rename is None:
                raise
            raise with_fields(error, [replace(one, field=rename(one.field)) for one in error.errors]) from None

    async def _answer(self, task: str, query: Any, write: Write[W], model: str | None) -> W:
        pipeline, chosen = self.state.pipeline, TASKS[task]
        if model and len(found := names_of(pipeline.models, model)) == 1:
            [self.context.model] = found
        encoded = await pipeline.encode(chosen, query, model=model, options=self.options, num_bytes=self.num_bytes)
        self.context.encoded(encoded.num_inputs, encoded.num_tokens)
        memory = self.state.memory
        with memory.reserved(num_reserved := memory_of(encoded)):
            advanced = await pipeline.advance(chosen, encoded, self.options)
            if advanced is encoded:
                return await self._compute(chosen, encoded, write)
            self.context.encoded(0, advanced.num_tokens - encoded.num_tokens)
            with memory.reserved(memory_of(advanced) - num_reserved):
                return await self._compute(chosen, advanced, write)

    async def _compute(self, task: Task[Any, Any], encoded: Encoded, write: Write[W]) -> W:
        finish = partial(self._finish, write, encoded.is_reply_large)
        written = await self.state.pipeline.compute(task, encoded, finish, self.options)
        self._count_labels(encoded)
        return written

    def _count_labels(self, encoded: Encoded) -> None:
        """Of a zero-shot classification: the labels that were scored, and those that a choice model has read."""
        query = encoded.query
        if isinstance(query, ClassifyQuery) and query.labels:
            rows = encoded.rows[:: encoded.num_inputs]
            read = sum([len(row.blocks) for row in rows if isinstance(row.readout, TokenScores)])
            self.state.metrics.labels_scored(len(query.scored), read)

    def _finish(self, write: Write[W], is_large: bool, answer: Answer[Any]) -> W:
        self.context.model, self.context.timing = answer.model, answer.timing
        return write(answer, is_large)

    async def in_thread(self, call: Callable[[], W]) -> W:
        """Runs a long computation off the event loop, in its turn among the accounts."""
        return await self.state.pipeline.threads.run(self.options, call)

    async def label_set(self, name: str, request: ClassifyRequest | None = None) -> LabelSet[LabelSetBody]:
        """The version of a stored label set that answers; `request` says what is asked of it, if more than its labels.

        Raises what `LabelSetVersions.find` raises.
        """
        return await enabled(self.state).find(name, self.options, request)


def renamed(names: Mapping[str, str]) -> Rename:
    """Renames the first field of a path: with {"inputs": "texts"} `inputs[3]` becomes `texts[3]`."""

    def rename(path: str) -> str:
        for name, new in names.items():
            if path.startswith(name) and path[len(name) : len(name) + 1] in ("", "[", "."):
                return new + path[len(name) :]
        return path

    return rename


def whole(answer: Answer[Any], is_large: bool) -> Answer[Any]:
    """A `write` for handlers that need the answer itself, of small replies."""
    return answer


def json_response(content: Any, headers: Mapping[str, str] | None = None, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, headers, "application/json")


def json_lists(lists: Any) -> orjson.Fragment:
    """A list of lists as JSON, some thousand items in each call.

    orjson keeps Python's lock while it writes, which takes a tenth of a second for the largest reply. The memory of a
    call's result is never less than 4 KB.
    """
    num_lists = 1 + SLICE_ITEMS // max(1, len(lists[0]) if lists else 1)
    slices = []
    for start in range(0, len(lists), num_lists):
        between_slices()
        slices.append(orjson.dumps(lists[start : start + num_lists])[1:-1])
    return orjson.Fragment(b"[" + b",".join(slices) + b"]")


def results_json(results: list[Any], is_large: bool) -> list[Any]:
    """The results of a task for orjson; large ones as dictionaries, with lists of lists as JSON."""
    if not is_large:
        return results
    written = []
    for result in results:
        content = {field.name: getattr(result, field.name) for field in fields(result)}
        for name, value in content.items():
            if isinstance(value, tuple) and value and isinstance(value[0], tuple):
                content[name] = json_lists(value)
        written.append(content)
        between_slices()
    return written


def memory_of(encoded: Encoded) -> int:
    """Bytes of a request's rows and of its reply, as `MemoryBudget` counts them."""
    return encoded.num_rows * ROW_BYTES + encoded.num_tokens * TOKEN_BYTES + encoded.reply_bytes


def server_timing(timing: Timing) -> dict[str, str]:
    """The header Server-Timing: milliseconds per stage, for a browser's network panel and `curl -i`."""
    tokenize, queue, compute = timing.tokenize * 1000, timing.queue * 1000, timing.compute * 1000
    return {"Server-Timing": f"tokenize;dur={tokenize:.3f}, queue;dur={queue:.3f}, compute;dur={compute:.3f}"}
