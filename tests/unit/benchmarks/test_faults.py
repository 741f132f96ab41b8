"""The fault bench, as far as it can be tried without a server: answers compared, orders, sums, growth, tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults.clients import NONE, RIGHT, WRONG, RequestContext, agree, counted, numbers, questions
from benchmarks.faults.faults import FAULTS
from benchmarks.faults.measure import longest_silence_s, summary
from benchmarks.faults.orders import give, is_open, take
from benchmarks.faults.proxies import HAPROXY, NGINX
from benchmarks.faults.tables import MARKED, PAGE, TABLES, as_text, num_lost, page
from benchmarks.faults.watch import Sample, growth, leaks, rss_slope

CLASSIFIED = {
    "results": [
        {
            "label": "好评",
            "score": 0.7,
            "scores": [{"label": "好评", "score": 0.7}, {"label": "差评", "score": 0.3}],
            "tokens": 9,
        }
    ]
}
READ = {"results": [{"answer": "六点", "index": 0, "score": 0.6, "scores": [0.6, 0.4], "tokens": 9}]}


def test_numbers_are_named_by_what_they_are_of() -> None:
    assert numbers(CLASSIFIED) == {".0.好评": 0.7, ".0.差评": 0.3}
    assert numbers(READ) == {".0.0": 0.6, ".0.1": 0.4}
    assert numbers({"results": [{"score": 0.5, "tokens": 1}, {"score": 0.25}]}) == {".0": 0.5, ".1": 0.25}
    assert numbers({"results": [{"embedding": [0.5, -0.5]}]}) == {".0.0": 0.5, ".0.1": -0.5}


@pytest.mark.parametrize(
    ("found", "is_same"),
    [
        ({"a": 0.6, "b": -1.0}, True),
        ({"a": 0.64, "b": -0.96}, True),
        ({"a": 0.66, "b": -1.0}, False),
        ({"a": -0.6, "b": 1.0}, False),
        ({"a": 0.6}, False),
        ({"a": 0.6, "c": -1.0}, False),
    ],
)
def test_answers_agree_within_what_arithmetic_makes(found: dict[str, float], is_same: bool) -> None:
    assert agree(found, {"a": 0.6, "b": -1.0}) is is_same


def test_questions_are_different_and_of_all_tasks_in_turn() -> None:
    asked = questions(3)
    assert [each.task for each in asked[:5]] == ["zero-shot", "similarity", "mrc", "nli", "embed"]
    assert len({each.body for each in asked}) == len(asked) == 15
    assert asked == questions(3)


def test_an_order_is_taken_once(tmp_path: Path) -> None:
    assert take(tmp_path) is None
    give(tmp_path, "nan")
    assert is_open(tmp_path, "nan")
    assert (take(tmp_path), take(tmp_path)) == ("nan", None)
    assert not is_open(tmp_path, "nan")


HAD = [
    RequestContext("embed", 0.0, 1.0, RIGHT),
    RequestContext("embed", 1.0, 9.0, NONE),
    RequestContext("embed", 2.0, 5.0, RIGHT),
    RequestContext("embed", 5.0, 6.5, WRONG),
    RequestContext("embed", 5.0, 7.0, "503 replica_lost"),
    RequestContext("embed", 6.0, 7.5, RIGHT),
]


def test_what_came_is_counted() -> None:
    assert counted(HAD) == {RIGHT: 3, WRONG: 1, "503 replica_lost": 1, NONE: 1}
    assert longest_silence_s(HAD, 0.5) == 4.0
    assert longest_silence_s(HAD, 8.0) == 0.0
    assert summary(HAD, 1.5) == {
        "asked": 6,
        "outcomes": counted(HAD),
        "lost": 2,
        "silence_s": 3.5,
        "slowest_answer_s": 8.0,
    }


def sample(at: int, rss_bytes: int = 100, tasks: int = 5) -> Sample:
    return Sample(float(at), rss_bytes, 20, 4, tasks, 2, 500)


def test_growth_is_of_the_settled_part() -> None:
    steady = [sample(at, rss_bytes=10 if at < 4 else 100) for at in range(20)]
    assert growth(steady)["rss_bytes"] == {"early": 100, "late": 100}
    assert (leaks(steady), rss_slope(steady)) == ([], pytest.approx(0.0, abs=1e-6))


def test_what_grows_is_a_leak() -> None:
    growing = [sample(at, rss_bytes=100 + at, tasks=5 + at // 8) for at in range(20)]
    assert leaks(growing) == ["rss_bytes", "tasks"]
    assert rss_slope(growing) == pytest.approx(3600.0)


def test_what_a_request_takes_while_it_runs_is_none() -> None:
    assert leaks([sample(at, tasks=5 + at % 2) for at in range(20)]) == []


def row(fault: str, lost: int) -> dict[str, object]:
    return {"fault": fault, "replicas": 1, "recovery_s": 1.5, **summary(HAD, 0.0), "lost": lost}


def test_what_is_wrong_until_the_canary_looks_is_told_and_is_no_failure() -> None:
    report = {"faults": [row("replica killed", 0), row("wrong for good", 2)], "proxied": []}
    assert num_lost(report) == 0
    assert "1 replica " in as_text(report)
    assert num_lost({**report, "proxied": [{"proxy": "nginx", **row("rolling restart", 1)}]}) == 1


def test_every_fault_has_a_name_of_its_own() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_the_page_shows_the_lines_of_the_proxies_that_are_tried() -> None:
    blocks = PAGE.read_text(encoding="utf-8").split("```")[1::2]
    shown = {block.partition("\n")[0]: block.partition("\n")[2].splitlines() for block in blocks}
    for name, tried in (("nginx", NGINX), ("haproxy", HAPROXY)):
        lines = {line.strip() for line in tried.splitlines()}
        wanted = [line.strip() for line in shown[name] if line.strip() and "10.0.0." not in line]
        assert wanted
        assert [line for line in wanted if line.replace("{", "{{").replace("}", "}}") not in lines] == []


def test_the_page_shows_what_the_results_say() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [found[2] for found in MARKED.finditer(text)] == list(TABLES)
    assert page(text) == text, "python -m benchmarks.faults.tables writes it"


def test_orders_of_two_are_not_taken_by_one(tmp_path: Path) -> None:
    give(tmp_path, "raise")
    give(tmp_path, "little room")
    assert (take(tmp_path), take(tmp_path)) == ("raise", "little room")
    assert list(tmp_path.iterdir()) == []
