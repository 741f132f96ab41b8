"""Makes the vectors of large lists of labels in the background, some rows at a time, at the lowest priority.

A list is prepared once at a time for a model. A chunk of rows that is refused or lost is computed again later, until it
succeeds or the preparation is released.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field, replace
from functools import partial

from service.batching.fair_threads import FairThreads
from service.batching.jobs import RequestResult
from service.domain import RANKS, RequestOptions
from service.errors import InvalidRequest, ServiceError
from service.metrics import Metrics
from service.pipeline import Submit
from service.tasks.label_rows import LabelRows, encode_labels, find_same
from service.tasks.label_vectors import LabelVectors, join
from service.tasks.labels import LabelList
from service.tasks.text_model import TextModel

logger = logging.getLogger(__name__)

CHUNK_ROWS = 256
"""Rows that are computed together, at least those of one label: other requests go between two chunks."""
MAX_RETRY_S = 30.0


@dataclass(slots=True, eq=False)
class Preparation:
    """The vectors of a list for a model, on their way: `done` of `of` labels. `error` is what stopped it, or what the
    last try met with. `names` are those of the label sets that want it."""

    model: TextModel
    labels: LabelList
    owner: str
    names: set[str] = field(default_factory=set)
    done: int = 0
    error: ServiceError | None = None
    has_failed: bool = False
    task: asyncio.Task[None] | None = None

    @property
    def of(self) -> int:
        return len(self.labels)


class LabelPreparation:
    """Prepares lists of labels with `submit`, which is `Batcher.submit`; lives on one event loop."""

    def __init__(
        self,
        submit: Submit,
        threads: FairThreads,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        retry_s: float = 1.0,
    ) -> None:
        self._submit = submit
        self._threads = threads
        self._metrics = metrics
        self._clock = clock
        self._retry_s = retry_s
        self._turn = asyncio.Semaphore(1)
        self._all: dict[tuple[str, LabelList], Preparation] = {}

    def find(self, model: TextModel, labels: LabelList) -> Preparation | None:
        """What is on its way, or has failed for good."""
        return self._all.get((model.name, labels))

    def start(self, model: TextModel, labels: LabelList, name: str, owner: str = "") -> Preparation:
        """The preparation of this list for a label set: the one that runs or has failed for good, else a new one."""
        key = (model.name, labels)
        preparation = self._all.get(key)
        if preparation is None:
            preparation = self._all[key] = Preparation(model, labels, owner)
            # In a context of its own: it outlives the request that starts it, whose id and trace are not its own.
            preparation.task = asyncio.create_task(self._run(preparation), name="label vectors", context=Context())
            self._metrics.label_sets_preparing.inc()
            preparation.task.add_done_callback(lambda _: self._metrics.label_sets_preparing.dec())
        preparation.names.add(name)
        return preparation

    def release(self, name: str, unless: LabelList | None = None) -> None:
        """The label set of that name no longer needs any list but `unless`; what no other set needs is cancelled."""
        for (model, labels), preparation in list(self._all.items()):
            if labels != unless:
                preparation.names.discard(name)
                if not preparation.names:
                    del self._all[model, labels]
                    if preparation.task is not None:
                        preparation.task.cancel()

    async def stop(self) -> None:
        tasks = [each.task for each in self._all.values() if each.task is not None]
        self._all.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, preparation: Preparation) -> None:
        model, labels, started = preparation.model, preparation.labels, self._clock()
        try:
            while model.label_vectors.get(labels) is None:
                await self._prepare(preparation)
        except asyncio.CancelledError:
            self._metrics.label_set_prepared("cancelled", self._clock() - started)
            raise
        except ServiceError as error:
            preparation.error, preparation.has_failed = error, True
            self._metrics.label_set_prepared("failed", self._clock() - started)
            logger.warning("label set: no vectors", extra={"model": model.name, "reason": error.detail})
        except Exception:  # whatever is wrong, requests for the set must not wait for ever
            preparation.error = ServiceError("the vectors of this label set could not be computed; the log says why")
            preparation.has_failed = True
            self._metrics.label_set_prepared("failed", self._clock() - started)
            logger.exception("label set: no vectors", extra={"model": model.name})
        else:
            self._metrics.label_set_prepared("kept", self._clock() - started)
            extra = {"model": model.name, "labels": len(labels), "seconds": round(self._clock() - started, 3)}
            logger.info("label set: vectors kept", extra=extra)
            with suppress(KeyError):
                del self._all[model.name, labels]

    async def _prepare(self, preparation: Preparation) -> None:
        """Raises InvalidRequest if the vectors cannot be kept, or a row cannot be made."""
        model, kept = preparation.model, preparation.model.label_vectors
        generation = kept.generation
        options = RequestOptions(priority=RANKS["bulk"], account=preparation.owner)
        parts: list[LabelVectors] = []
        keys: list[bytes] = []
        preparation.done = 0
        for chunk in _chunks(model, preparation.labels):
            rows = await self._threads.run(options, partial(encode_labels, model, chunk))
            result = await self._compute(preparation, rows, options)
            parts.append(rows.vectors(result.outputs))
            keys += rows.keys()
            if kept.generation != generation:
                return
            preparation.done += len(chunk)
        made = await self._threads.run(options, partial(_join, parts, keys))
        if made.num_bytes > kept.max_bytes:
            raise InvalidRequest.of(
                "label_set",
                f"its vectors have {made.num_bytes} bytes, and at most {kept.max_bytes} are kept (label_vectors_bytes)",
            )
        kept.put(preparation.labels, made, generation)

    async def _compute(self, preparation: Preparation, rows: LabelRows, options: RequestOptions) -> RequestResult:
        encodings = [replace(row, kept_as=None) for row in rows.rows]
        wait_s = self._retry_s
        while True:
            try:
                async with self._turn:
                    result = await self._submit(encodings, options)
            except InvalidRequest:
                raise
            except ServiceError as error:
                preparation.error = error
                await asyncio.sleep(wait_s)
                wait_s = min(MAX_RETRY_S, 2 * wait_s)
            else:
                preparation.error = None
                return result


def _chunks(model: TextModel, labels: LabelList) -> Iterator[LabelList]:
    num_templates = len(model.blend.templates) if model.blend else 1
    first = num_rows = 0
    for index, label in enumerate(labels.labels):
        of_label = num_templates + (label.description is not None) + len(label.examples)
        if num_rows and num_rows + of_label > CHUNK_ROWS:
            yield LabelList(labels.labels[first:index])
            first, num_rows = index, 0
        num_rows += of_label
    yield LabelList(labels.labels[first:])


def _join(parts: Sequence[LabelVectors], keys: Sequence[bytes]) -> LabelVectors:
    """The vectors of all labels, and what their examples teach: of thousands it takes seconds."""
    made = join(parts, find_same(keys))
    _ = made.learned
    return made
