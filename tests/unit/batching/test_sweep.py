"""The claim of the sweep, on a small one: simulated time, so the same everywhere."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.queue_sweep import CASES, CLASSES, sweep


def test_small_requests_wait_less_behind_huge_ones_than_first_in_first_out() -> None:
    results = list(sweep([replace(CASES[0], num_requests=2000)], seed=2))
    for fifo, ours in zip(results[::2], results[1::2], strict=True):
        for kind in CLASSES:
            assert ours["classes"][kind]["requests"] == fifo["classes"][kind]["requests"]
        for kind in ("short", "medium", "long"):
            assert ours["classes"][kind]["p95_s"] < fifo["classes"][kind]["p95_s"]
