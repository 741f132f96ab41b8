"""Speeds, as a server's metrics and a file of results tell them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from service.batching.latency_model import Cost
from service.planning.speed import Speed, chosen, from_file, from_metrics
from tests.fakes import make_metrics

FAST = Speed("m", "cpu", "bfloat16", Cost(0.25, 0.5, 0.125), 512)
SLOW = Speed("n", "cpu", "bfloat16", Cost(1.0, 2.0, 3.0), 64)


def page() -> str:
    metrics = make_metrics(("m", "n", "unmeasured"))
    metrics.replica_holds("cpu", device="cpu", precisions={"m": "bfloat16", "n": "bfloat16"}, memory_bytes=1)
    for one in (FAST, SLOW):
        cost = one.cost
        metrics.costs(one.model, one.budget, batch_s=cost.batch, token_s=cost.token, row_s=cost.row)
    return generate_latest(metrics.registry).decode()


def test_a_page_of_metrics_tells_the_models_that_were_measured() -> None:
    assert from_metrics(page()) == [FAST, SLOW]


def test_a_page_of_something_else_tells_none() -> None:
    assert from_metrics("up 1\n") == []


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    file.write_text(json.dumps({"speeds": [FAST.as_json(), SLOW.as_json()]}))
    assert from_file(file) == [FAST, SLOW]


@pytest.mark.parametrize("text", ["[]", "{}"])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"benchmarks\.speed"):
        from_file(file)


def test_the_model_that_was_asked_for_is_chosen_or_the_first() -> None:
    assert (chosen([FAST, SLOW], None), chosen([FAST, SLOW], "n")) == (FAST, SLOW)
    with pytest.raises(ValueError, match="x: not there; there is m, n"):
        chosen([FAST, SLOW], "x")
    with pytest.raises(ValueError, match="none that was measured"):
        chosen([], None)


def test_tokens_a_second_are_those_of_full_batches() -> None:
    # 64 rows of 8 tokens: 0.25 + 512 * 0.5 + 64 * 0.125 seconds.
    assert FAST.tokens_per_s(8) == pytest.approx(512 / 264.25)
    assert SLOW.tokens_per_s(500) == pytest.approx(64 / (1 + 128 + 3))
