"""Caches of outputs: for when the same row comes again, bounded in number and bytes, each for a limited time.

The result cache holds any row, and is off by default. The label cache holds the rows that a task marks as kept, such as
the vectors of labels, and is always on. The least recently used outputs are evicted first.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from service.domain import Encoding, Output, digest
from service.metric_labels import CacheName, EvictionReason
from service.metrics import Metrics

ENTRY_BYTES = 512
"""Memory of one entry besides its numbers: key, objects and table slots."""


@dataclass(frozen=True, slots=True)
class CachedOutput:
    output: Output
    size: int
    expires_at: float


class OutputCache:
    """Outputs by key, as copies: an array may be a view that keeps its whole batch in memory."""

    name: CacheName

    def __init__(
        self,
        *,
        max_entries: float,
        max_bytes: int,
        ttl_s: float,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._metrics = metrics
        self._clock = clock
        self._kept: OrderedDict[bytes, CachedOutput] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Drops every output: one of them may come from a device that computes wrong numbers."""
        for key in list(self._kept):
            self._evict(key, "distrusted")

    def _find(self, key: bytes) -> Output | None:
        """The output, unless it is missing or too old."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        if kept.expires_at <= self._clock():
            self._evict(key, "expired")
            return None
        self._kept.move_to_end(key)
        return kept.output

    def _put(self, key: bytes, output: Output) -> None:
        own = Output(output.scores.copy(), None if output.ids is None else output.ids.copy())
        size = ENTRY_BYTES + own.scores.nbytes + (0 if own.ids is None else own.ids.nbytes)
        if key in self._kept:
            self._size -= self._kept.pop(key).size
        self._kept[key] = CachedOutput(own, size, self._clock() + self._ttl_s)
        self._size += size
        while len(self._kept) > self._max_entries or self._size > self._max_bytes:
            self._evict(next(iter(self._kept)), "full")
        self._metrics.cache_holds(self.name, len(self._kept), self._size)

    def _evict(self, key: bytes, reason: EvictionReason) -> None:
        self._size -= self._kept.pop(key).size
        self._metrics.cache_evicts(self.name, reason)
        self._metrics.cache_holds(self.name, len(self._kept), self._size)


class ResultCache(OutputCache):
    """Holds any row. `revisions` maps a model name to the revision of its weights; it may be filled later."""

    name = "results"

    def __init__(
        self,
        *,
        max_entries: int,
        max_bytes: int,
        ttl_s: float,
        metrics: Metrics,
        revisions: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(max_entries=max_entries, max_bytes=max_bytes, ttl_s=ttl_s, metrics=metrics, clock=clock)
        self._revisions = revisions

    def get(self, encoding: Encoding) -> Output | None:
        """The output of an equal row."""
        output = self._find(self._key(encoding))
        is_hit = output is not None
        self._metrics.looked_up(self.name, encoding.model, hits=is_hit, misses=not is_hit)
        return output

    def put(self, encoding: Encoding, output: Output) -> None:
        self._put(self._key(encoding), output)

    def _key(self, encoding: Encoding) -> bytes:
        return digest(encoding, str(self._revisions.get(encoding.model)))


class LabelCache(OutputCache):
    """Holds the rows with `kept_as`, as long as there is room: the weights of a running service do not change."""

    name = "labels"

    def __init__(self, *, max_bytes: int, metrics: Metrics) -> None:
        super().__init__(max_entries=inf, max_bytes=max_bytes, ttl_s=inf, metrics=metrics)

    def __contains__(self, encoding: Encoding) -> bool:
        return encoding.kept_as in self._kept

    def find(self, encodings: Sequence[Encoding]) -> dict[int, Output]:
        """The outputs of those rows of one request that are kept, by row."""
        found: dict[int, Output] = {}
        misses: Counter[str] = Counter()
        for row, encoding in enumerate(encodings):
            key = encoding.kept_as
            if key is not None:
                if kept := self._kept.get(key):
                    self._kept.move_to_end(key)
                    found[row] = kept.output
                else:
                    misses[encoding.model] += 1
        hits = Counter([encodings[row].model for row in found])
        for model in hits.keys() | misses.keys():
            self._metrics.looked_up(self.name, model, hits=hits[model], misses=misses[model])
        return found

    def put(self, encoding: Encoding, output: Output) -> None:
        if encoding.kept_as is not None:
            self._put(encoding.kept_as, output)
