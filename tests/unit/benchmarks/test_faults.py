"""Faults: one is injected into a real server, a soak sends and injects what it says, and growth is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.faults import inject
from benchmarks.faults.soak import Sample, growth, leaks, rss_slope
from tests.support.clients import agree, numbers, questions


@pytest.mark.slow
@pytest.mark.system
def test_a_killed_replica_loses_no_request(tmp_path: Path) -> None:
    file = tmp_path / "faults.json"
    few = ("--replicas", "1", "--clients", "2", "--questions", "2")
    assert inject.main(["--only", "replica killed", *few, "--json", str(file)]) == 0
    [found] = json.loads(file.read_text())["faults"]
    assert found["outcomes"] == {"200": found["asked"]}
    assert found["counted_by_the_server"]["killed"] == 1


def sample(at: int, rss_bytes: int = 100, tasks: int = 5) -> Sample:
    return Sample(float(at), rss_bytes, 20, 4, tasks, 2, 500)


def test_growth_is_a_leak_after_the_start_only() -> None:
    steady = [sample(at, rss_bytes=10 if at < 4 else 100, tasks=5 + at % 2) for at in range(20)]
    assert growth(steady)["rss_bytes"] == {"early": 100, "late": 100}
    assert leaks(steady) == []
    growing = [sample(at, rss_bytes=100 + at, tasks=5 + at // 8) for at in range(20)]
    assert leaks(growing) == ["rss_bytes", "tasks"]
    assert rss_slope(growing) == pytest.approx(3600.0)


def test_answers_are_compared_by_their_numbers() -> None:
    scores = [{"label": "好评", "score": 0.7}, {"label": "差评", "score": 0.3}]
    found = numbers({"results": [{"label": "好评", "score": 0.7, "scores": scores, "tokens": 9}]})
    assert found == {".0.好评": 0.7, ".0.差评": 0.3}
    assert agree(found, {".0.好评": 0.72, ".0.差评": 0.3})
    assert not agree(found, {".0.好评": 0.76, ".0.差评": 0.3})
    assert not agree(found, {".0.好评": 0.7})
    assert questions(3) == questions(3)
