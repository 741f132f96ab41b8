"""The result cache: lookup by row identity, eviction, expiry and its metrics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from service.batching.result_cache import ENTRY_BYTES, LabelCache, ResultCache
from service.domain import Encoding, Mean, Output, TokenScores, keep, row_identity
from service.metrics import Metrics
from tests.fakes import FakeClock, make_metrics, row, total, value

ROW = row(1, 2, 3)
OTHERS = [
    row(1, 2, 4),
    row(1, 2),
    replace(ROW, model="n"),
    replace(ROW, readout=Mean()),
    replace(ROW, readout=TokenScores((1,), (2,))),
    replace(ROW, blocks=((1, 2),)),
    replace(ROW, segment_ids=ROW.segment_ids + 1),
    replace(ROW, positions=ROW.positions + 1),
    replace(ROW, ids=ROW.segment_ids, segment_ids=ROW.ids),
]


class Bench:
    """A cache with its clock, metrics and revisions."""

    def __init__(self, max_entries: int = 10, max_bytes: int = 10**6) -> None:
        self.clock = FakeClock()
        self.metrics: Metrics = make_metrics(("m", "n"))
        self.revisions = {"m": "1"}
        self.cache = ResultCache(
            max_entries=max_entries,
            max_bytes=max_bytes,
            ttl_s=60.0,
            metrics=self.metrics,
            revisions=self.revisions,
            clock=self.clock,
        )

    def put(self, *encodings: Encoding) -> None:
        for encoding in encodings:
            self.cache.put(encoding, total(encoding))

    def has(self, encoding: Encoding) -> bool:
        found = self.cache.get(encoding)
        assert found is None or found.scores == total(encoding).scores
        return found is not None


@pytest.mark.parametrize("other", OTHERS)
def test_get_finds_only_an_equal_row_of_the_same_revision(other: Encoding) -> None:
    bench = Bench()
    bench.put(other)
    assert not bench.has(ROW)
    assert row_identity(ROW) != row_identity(other)
    bench.put(ROW)
    again = row(1, 2, 3)
    assert bench.has(again)
    assert row_identity(ROW) == row_identity(again)
    bench.revisions["m"] = "2"
    assert not bench.has(ROW)


def test_the_least_recently_used_entry_is_evicted_first() -> None:
    bench = Bench(max_entries=2)
    first, second, third = row(1), row(2), row(3)
    bench.put(first, second)
    assert bench.has(first)
    bench.put(third)
    assert [bench.has(each) for each in (first, second, third)] == [True, False, True]
    assert value(bench.metrics, "cache_entries") == 2
    assert value(bench.metrics, "cache_evicted_total", reason="full") == 1
    assert value(bench.metrics, "cache_hits_total", model="m") == 3
    assert value(bench.metrics, "cache_misses_total", model="m") == 1


def test_the_size_in_bytes_is_limited_and_exported() -> None:
    bench = Bench(max_bytes=2 * (ENTRY_BYTES + 4))
    bench.put(row(1), row(2), row(2))
    assert value(bench.metrics, "cache_size_bytes") == 2 * (ENTRY_BYTES + 4)
    bench.put(row(3))
    assert len(bench.cache) == 2
    bench.cache.put(row(4), Output(np.zeros((100, 100), dtype=np.float32), np.zeros((100, 100), dtype=np.int32)))
    assert (len(bench.cache), value(bench.metrics, "cache_size_bytes")) == (0, 0), "an output larger than the cache"


def test_an_expired_entry_is_not_found() -> None:
    bench = Bench()
    bench.put(ROW)
    bench.clock.now += 59.0
    assert bench.has(ROW)
    bench.clock.now += 1.0
    assert not bench.has(ROW)
    assert value(bench.metrics, "cache_evicted_total", reason="expired") == 1
    assert value(bench.metrics, "cache_size_bytes") == 0


def test_the_cache_keeps_a_copy_of_the_output() -> None:
    bench, whole = Bench(), np.ones((4, 1), dtype=np.float32)
    bench.cache.put(ROW, Output(whole[:1]))
    kept = bench.cache.get(ROW)
    assert kept is not None
    assert kept.scores.base is None


def test_the_label_cache_is_limited_in_bytes() -> None:
    metrics = make_metrics(("m", "n"))
    cache = LabelCache(max_bytes=2 * (ENTRY_BYTES + 4), metrics=metrics)
    first, second, third = keep(row(1)), keep(row(2)), keep(row(3))
    for each in (first, second):
        cache.put(each, total(each))
    assert list(cache.find([row(1), first])) == [1], "a row that is not kept is not looked up"
    cache.put(third, total(third))
    assert [each in cache for each in (first, second, third)] == [True, False, True]
    assert list(cache.find([first, second, third])) == [0, 2]
    assert value(metrics, "label_cache_size_bytes") == 2 * (ENTRY_BYTES + 4)
    assert value(metrics, "label_cache_evicted_total", reason="full") == 1
    assert value(metrics, "label_cache_hits_total", model="m") == 3
    assert value(metrics, "label_cache_misses_total", model="m") == 1


@pytest.mark.parametrize("other", OTHERS)
def test_kept_rows_have_the_same_key_only_if_they_are_equal(other: Encoding) -> None:
    assert keep(other).kept_as not in (None, keep(ROW).kept_as)
    assert keep(row(1, 2, 3)).kept_as == keep(ROW).kept_as
