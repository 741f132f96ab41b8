"""The sizing table is made of the speeds that were measured, and the operators' guide shows it."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.sizing import BEGIN, DOCUMENT, END, HEAD, OVER_HTTP, RESULTS, table, words
from service.batching.latency_model import Cost
from service.tools.capacity import Speed


def test_a_line_for_each_speed(tmp_path: Path) -> None:
    quick = Speed("quick", "gpu", "bfloat16", Cost(0.001, 1e-5, 0.0), 2000)
    slow = Speed("slow", "gpu", "int8", Cost(1.0, 0.01, 0.0), 64)
    file = {"machine": "a machine", "speeds": [quick.as_json(), slow.as_json()]}
    (tmp_path / "speed_gpu.json").write_text(json.dumps(file))
    assert table(tmp_path) == HEAD + (
        "| a machine | quick | bfloat16 | 95,238 | 1,939.5 | 1 | 1 | 1 |\n"
        "| a machine | slow | int8 | 39 | 0.8 | - | - | - |\n"
    )


def test_the_guide_shows_what_was_measured() -> None:
    shown = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert shown == table(RESULTS) + words(RESULTS)


def test_the_speed_over_http_is_told_beside_it(tmp_path: Path) -> None:
    points = [{"concurrency": c, "results": {"all": {"tokens_per_s": rate}}} for c, rate in ((1, 900.4), (8, 1234.5))]
    (tmp_path / OVER_HTTP).write_text(json.dumps({"points": points}))
    assert "`mini` answered 1,234 tokens/s to 8 clients" in words(tmp_path).replace("\n", " ")
