"""Result cache: outputs kept for when the same row comes again, bounded in number and bytes, each for a limited time.

The least recently used outputs are evicted first.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

from service.batching.jobs import row_identity
from service.domain import Encoding, Output
from service.metric_labels import EvictionReason
from service.metrics import Metrics

ENTRY_BYTES = 512
"""Memory of one entry besides its numbers: key, objects and table slots."""


@dataclass(frozen=True, slots=True)
class CachedOutput:
    output: Output
    size: int
    expires_at: float


class ResultCache:
    """`revisions` maps a model name to the revision of its weights; it may be filled later."""

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
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._metrics = metrics
        self._revisions = revisions
        self._clock = clock
        self._kept: OrderedDict[bytes, CachedOutput] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, encoding: Encoding) -> Output | None:
        """The output of an equal row, unless it is missing or too old."""
        key = self._key(encoding)
        kept = self._kept.get(key)
        if kept and kept.expires_at <= self._clock():
            self._evict(key, "expired")
            kept = None
        self._metrics.looked_up(encoding.model, is_hit=kept is not None)
        if kept is None:
            return None
        self._kept.move_to_end(key)
        return kept.output

    def put(self, encoding: Encoding, output: Output) -> None:
        """Keeps a copy: an array may be a view that keeps its whole batch in memory."""
        key = self._key(encoding)
        own = Output(output.scores.copy(), None if output.ids is None else output.ids.copy())
        size = ENTRY_BYTES + own.scores.nbytes + (0 if own.ids is None else own.ids.nbytes)
        if key in self._kept:
            self._size -= self._kept.pop(key).size
        self._kept[key] = CachedOutput(own, size, self._clock() + self._ttl_s)
        self._size += size
        while len(self._kept) > self._max_entries or self._size > self._max_bytes:
            self._evict(next(iter(self._kept)), "full")
        self._metrics.cache_holds(len(self._kept), self._size)

    def _evict(self, key: bytes, reason: EvictionReason) -> None:
        self._size -= self._kept.pop(key).size
        self._metrics.cache_evicts(reason)
        self._metrics.cache_holds(len(self._kept), self._size)

    def _key(self, encoding: Encoding) -> bytes:
        """A hash of the weights' revision and the row: the identity itself is as long as the text."""
        *form, ids, segment_ids, positions = row_identity(encoding)
        weights = repr((self._revisions.get(encoding.model), form)).encode()
        return blake2b(weights + ids + segment_ids + positions, digest_size=16).digest()
