"""Which version of a stored label set answers: the newest one, once its vectors are kept if it needs any.

The vectors of a set are prepared when it is written, when the server starts, and when a request finds them missing. A
request for a small set does not wait for that: it computes what is missing with its own rows. For a large set the last
version that answered goes on answering; a set without one makes its requests wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from service.api.schemas import ClassifyRequest, LabelSetBody
from service.domain import RequestOptions
from service.errors import DeadlineExceeded, InvalidRequest, LabelSetNotFound, ModelNotFound
from service.label_preparation import LabelPreparation, Preparation
from service.pipeline import Pipeline
from service.stores.label_sets import LabelSet, LabelSets
from service.tasks.classification import CLASSIFY
from service.tasks.classify_query import ClassifyQuery
from service.tasks.registry import route
from service.tasks.text_model import TextModel
from service.tasks.zero_shot import embedder_of

SMALL = 256
"""Labels, descriptions and examples together of a set whose requests compute its vectors."""
PATIENCE_S = 2.0
"""How long a response waits for the vectors of a small set that was written."""

Stored = LabelSet[LabelSetBody]


class LabelSetVersions:
    """The versions of the label sets that answer, by set and embedding model. Lives on one event loop."""

    def __init__(
        self,
        label_sets: LabelSets[LabelSetBody],
        pipeline: Pipeline,
        preparation: LabelPreparation,
        *,
        clock: Callable[[], float] = time.monotonic,
        small: int = SMALL,
    ) -> None:
        self.label_sets = label_sets
        self.preparation = preparation
        self._pipeline = pipeline
        self._clock = clock
        self._small = small
        self._answering: dict[str, dict[str, Stored]] = {}

    async def find(self, name: str, options: RequestOptions, request: ClassifyRequest | None = None) -> Stored:
        """The version that answers a request for the set; by default one that says nothing else.

        Raises:
            LabelSetNotFound, StorageUnavailable: see `LabelSets.get`.
            DeadlineExceeded: its first version is not prepared in time.
            ServiceError: its first version cannot be prepared.
        """
        while True:
            newest = self.label_sets.recent(name) or await self._read(name, options)
            embedder, query = self._embedder(newest, request)
            if embedder is None or query is None or _is_kept(embedder, query):
                return self._note(newest, embedder)
            if newest.value.label_list.num_texts <= self._small:
                return newest
            preparation = self.preparation.start(embedder, query.scored, name, newest.owner)
            if (older := self._answering.get(name, {}).get(embedder.name)) and _is_kept(
                embedder, self._embedder(older, request)[1]
            ):
                return older
            await self._wait(preparation, options)

    async def prepare(self, written: Stored) -> None:
        """Starts what the newest version needs, and ends what only older ones need."""
        embedder, query = self._embedder(written)
        self.preparation.release(written.name, unless=query.scored if query else None)
        if embedder is None or query is None or _is_kept(embedder, query):
            return
        task = self.preparation.start(embedder, query.scored, written.name, written.owner).task
        if task is not None and written.value.label_list.num_texts <= self._small:
            await asyncio.wait({task}, timeout=PATIENCE_S)

    async def prepare_all(self) -> None:
        """Starts the preparation of all stored sets, without waiting for it."""
        for stored in await self._pipeline.threads.run(RequestOptions(), self.label_sets.all):
            embedder, query = self._embedder(stored)
            if embedder is not None and query is not None and not _is_kept(embedder, query):
                self.preparation.start(embedder, query.scored, stored.name, stored.owner)

    def forget(self, name: str) -> None:
        """The set was deleted."""
        self.preparation.release(name)
        self._answering.pop(name, None)

    def progress(self, stored: Stored) -> dict[str, Any] | None:
        """How far the vectors of this version are; None if it needs none."""
        embedder, query = self._embedder(stored)
        if embedder is None or query is None:
            return None
        if _is_kept(embedder, query):
            return {"done": len(query.scored), "of": len(query.scored), "error": None}
        found = self.preparation.find(embedder, query.scored)
        error = found.error.detail if found and found.error else None
        num_done = min(found.done, len(query.scored) - 1) if found else 0  # the last one is done when all are kept
        return {"done": num_done, "of": len(query.scored), "error": error}

    async def _read(self, name: str, options: RequestOptions) -> Stored:
        try:
            return await self._pipeline.threads.run(options, partial(self.label_sets.get, name))
        except LabelSetNotFound:
            self.forget(name)
            raise

    def _embedder(
        self, stored: Stored, request: ClassifyRequest | None = None
    ) -> tuple[TextModel | None, ClassifyQuery | None]:
        """The embedding model that takes part in a request for this version, and the query; by default that of a
        request that says nothing else. What is wrong with the request is found when it is encoded."""
        body = stored.value
        if request is None:
            query = ClassifyQuery((), body.label_list, method=body.method, hierarchy=body.hierarchy)
        else:
            query = request.with_labels_of(body).query()
        try:
            model = route(self._pipeline.models, CLASSIFY, query, request.model if request else None)
        except (InvalidRequest, ModelNotFound):
            return None, None
        return embedder_of(model, query), query

    def _note(self, stored: Stored, embedder: TextModel | None) -> Stored:
        if embedder is not None:
            self._answering.setdefault(stored.name, {})[embedder.name] = stored
        return stored

    async def _wait(self, preparation: Preparation, options: RequestOptions) -> None:
        if preparation.has_failed and preparation.error is not None:
            raise preparation.error
        assert preparation.task is not None, "a preparation is found after it was started"
        left_s = None if options.deadline is None else max(0.0, options.deadline - self._clock())
        done, _ = await asyncio.wait({preparation.task}, timeout=left_s)
        if not done:
            progress = f"{preparation.done} of {preparation.of} labels are done"
            raise DeadlineExceeded(f"the vectors of this label set are being computed: {progress}")


def _is_kept(embedder: TextModel, query: ClassifyQuery | None) -> bool:
    return query is not None and embedder.label_vectors.get(query.scored) is not None
