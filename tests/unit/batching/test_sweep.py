"""The claim of the sweep, on a small one: simulated time, so the same everywhere."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from benchmarks.queue_sweep import CLASSES, MARKED, PAGE, RESULTS, cases, page, sweep


def test_small_requests_wait_less_behind_huge_ones_than_first_in_first_out() -> None:
    results = list(sweep([replace(cases()[0], num_requests=2000)], seed=2))
    for fifo, ours in zip(results[::2], results[1::2], strict=True):
        for kind in CLASSES:
            assert ours["classes"][kind]["requests"] == fifo["classes"][kind]["requests"]
        for kind in ("short", "medium", "long"):
            assert ours["classes"][kind]["p95_s"] < fifo["classes"][kind]["p95_s"]


def test_the_page_shows_what_was_simulated_of_the_speed_that_was_measured() -> None:
    found = json.loads((RESULTS / "queue_sweep.json").read_text(encoding="utf-8"))
    assert found["cases"] == [asdict(case) for case in cases()], "run it again: the CPU was measured anew"
    text = PAGE.read_text(encoding="utf-8")
    assert MARKED.search(text)
    assert page(text) == text, "python -m benchmarks.queue_sweep --docs writes it"
