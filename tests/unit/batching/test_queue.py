"""The queue by table, with a fake clock, and its invariants under hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching import queue as queue_module
from service.batching.job import Job, Settled, Ticket
from service.batching.queue import Queue
from service.errors import InferenceFailed, ServiceError
from service.metrics import DropReason
from tests.fakes import rows

AGE = 10.0


class Bench:
    """A queue, and what happened to its jobs; a job is known by the order it was pushed in."""

    def __init__(self) -> None:
        self.dropped: list[tuple[DropReason, list[int]]] = []
        self.queue = Queue(max_age_s=AGE, dropped=self._on_dropped)

    def push(
        self,
        *lengths: int,
        now: float = 0.0,
        model: str = "m",
        priority: int = 0,
        deadline: float | None = None,
    ) -> Ticket:
        ticket = Ticket(rows(*lengths, model=model), now, _ignore, deadline, priority)
        self.queue.push(ticket.jobs())
        return ticket

    def take(self, budget: int, now: float = 0.0) -> list[int]:
        return _numbers(self.queue.take(now, budget))

    def take_all(self, budget: int, now: float = 0.0) -> list[list[int]]:
        return list(iter(lambda: self.take(budget, now), []))

    def _on_dropped(self, reason: DropReason, jobs: Sequence[Job]) -> None:
        self.dropped.append((reason, _numbers(jobs)))


def _ignore(result: Settled | ServiceError) -> None:
    """Nobody waits for these tickets."""


def _numbers(jobs: Sequence[Job]) -> list[int]:
    return [job.number for job in jobs]


@pytest.mark.parametrize(
    ("lengths", "budget", "batches"),
    [
        ([], 10, []),
        ([3], 10, [[0]]),
        ([5, 5], 10, [[0, 1]]),
        ([5, 5, 1], 10, [[0, 1], [2]]),
        ([4, 4, 4], 10, [[0, 1], [2]]),
        ([11], 10, [[0]]),
        ([11, 1], 10, [[0], [1]]),
        ([1, 11, 1], 10, [[0, 2], [1]]),
        ([6, 6, 4, 4], 10, [[0, 2], [1, 3]]),
        ([6, 5, 3, 1], 10, [[0, 2, 3], [1]]),
    ],
)
def test_batches_by_table(lengths: list[int], budget: int, batches: list[list[int]]) -> None:
    bench = Bench()
    bench.push(*lengths)
    assert bench.take_all(budget) == batches
    assert len(bench.queue) == bench.queue.num_tokens == 0


def test_one_model_per_batch_and_that_of_the_head() -> None:
    bench = Bench()
    for length, model in [(2, "a"), (2, "b"), (2, "a"), (2, "b")]:
        bench.push(length, model=model)
    assert bench.take_all(10) == [[0, 2], [1, 3]]


def test_a_job_past_the_age_cap_is_not_overtaken_by_shorter_ones() -> None:
    bench = Bench()
    bench.push(6, now=0.0)
    bench.push(6, now=0.0)
    bench.push(2, now=1.0)
    assert bench.take(10, now=AGE) == [0]
    assert bench.take(10, now=AGE) == [1, 2]


def test_priority_goes_first_until_the_age_cap() -> None:
    bench = Bench()
    bench.push(10, now=0.0)
    bench.push(10, now=1.0, priority=5)
    assert bench.take_all(10, now=2.0) == [[1], [0]]
    bench.push(10, now=0.0)
    bench.push(10, now=1.0, priority=5)
    assert bench.take_all(10, now=AGE) == [[2], [3]]


def test_a_batch_mixes_priorities_in_their_order() -> None:
    bench = Bench()
    for priority in (0, 1, 0, 1):
        bench.push(2, priority=priority)
    assert bench.take(10) == [1, 3, 0, 2]


def test_the_expired_are_not_in_the_batch_that_is_taken() -> None:
    bench = Bench()
    bench.push(2, deadline=5.0)
    bench.push(2)
    bench.push(2, deadline=6.0)
    assert bench.take(10, now=5.0) == [1, 2]
    assert bench.dropped == [("expired", [0])]
    assert bench.queue.num_tokens == 0


def test_the_cancelled_and_the_failed_are_not_in_the_batch_that_is_taken() -> None:
    bench = Bench()
    tickets = [bench.push(2) for _ in range(3)]
    tickets[0].close("cancelled")
    tickets[2].fail(InferenceFailed("bad"))
    assert bench.take(10) == [1]
    assert bench.dropped == [("cancelled", [0]), ("abandoned", [2])]
    assert len(bench.queue) == bench.queue.num_tokens == 0


def test_only_dead_jobs_make_no_batch() -> None:
    bench = Bench()
    bench.push(2, 2, deadline=1.0)
    assert bench.take(10, now=1.0) == []
    assert bench.dropped == [("expired", [0, 1])]


def test_remove_drops_those_that_still_wait() -> None:
    bench = Bench()
    ticket = Ticket(rows(5, 5), 0.0, _ignore)
    jobs = ticket.jobs()
    bench.queue.push(jobs)
    assert bench.take(5) == [0]
    bench.queue.remove(jobs, "abandoned")
    bench.queue.remove(jobs, "abandoned")
    assert bench.dropped == [("abandoned", [1])]
    assert bench.queue.num_tokens == 0


def test_lost_jobs_go_to_the_head_in_order() -> None:
    bench = Bench()
    bench.push(*[5] * 6)
    first, second = bench.queue.take(0.0, 10), bench.queue.take(0.0, 10)
    bench.push(5, priority=9)
    bench.queue.give_back(second)
    bench.queue.give_back(first)
    assert bench.queue.num_tokens == 35
    assert bench.take_all(10) == [[0, 1], [2, 3], [6, 4], [5]]


def test_lost_jobs_lead_but_do_not_mix_models() -> None:
    bench = Bench()
    bench.push(2, model="a")
    bench.push(2, model="b")
    lost = bench.queue.take(0.0, 10) + bench.queue.take(0.0, 10)
    bench.push(2, model="a")
    bench.queue.give_back(lost)
    assert bench.take_all(10) == [[0, 2], [1]]


def test_oldest_arrival() -> None:
    bench = Bench()
    assert bench.queue.oldest_arrival() is None
    bench.push(1, now=7.0, priority=1)
    bench.push(1, now=9.0)
    assert bench.queue.oldest_arrival() == 7.0


def test_looking_for_short_jobs_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "MAX_PASSED_OVER", 3)
    bench = Bench()
    bench.push(6, 9, 9, 9, 1)
    assert bench.take(10) == [0]


Pushed = tuple[int, str, int, float]
pushes = st.lists(
    st.tuples(st.integers(1, 30), st.sampled_from("ab"), st.integers(0, 2), st.sampled_from([0.0, 5.0, 12.0])),
    max_size=30,
).map(lambda jobs: sorted(jobs, key=lambda job: job[3]))
NOW = 15.0


@given(pushes, st.integers(1, 40), st.data())
def test_invariants(pushed: list[Pushed], budget: int, data: st.DataObject) -> None:
    bench = Bench()
    for length, model, priority, arrived in pushed:
        bench.push(length, now=arrived, model=model, priority=priority)
    batches: list[list[Job]] = []
    lost: set[int] = set()
    while batch := bench.queue.take(NOW, budget):
        _check_batch(batch, budget)
        if not any(job.num_losses for job in batch) and data.draw(st.booleans(), label="lost"):
            lost.update(_numbers(batch))
            bench.queue.give_back(batch)
        else:
            batches.append(batch)
    # None is lost, none is there twice, the token count is kept.
    assert sorted(job.number for job in chain(*batches)) == list(range(len(pushed)))
    assert len(bench.queue) == bench.queue.num_tokens == 0
    if not lost:
        _check_order(batches)


def _check_batch(batch: list[Job], budget: int) -> None:
    assert len({job.encoding.model for job in batch}) == 1
    assert len(batch) == 1 or sum(job.num_tokens for job in batch) <= budget


def _check_order(batches: list[list[Job]]) -> None:
    """Past the age cap: first in, first out, whatever the priority; below it: so for jobs that are alike."""
    for model in "ab":
        taken = [job for job in chain(*batches) if job.encoding.model == model]
        due = [job.number for job in taken if NOW - job.ticket.arrived >= AGE]
        assert due == sorted(due)
        alike: dict[tuple[int, int], list[int]] = {}
        for job in taken:
            alike.setdefault((job.ticket.priority, job.num_tokens), []).append(job.number)
        assert all(numbers == sorted(numbers) for numbers in alike.values())
    heads = [batch[0] for batch in batches]
    ranks = [(NOW - head.ticket.arrived < AGE, head.number) for head in heads]
    due_heads = [rank for rank in ranks if not rank[0]]
    assert ranks[: len(due_heads)] == sorted(due_heads), "whoever is due leads a batch before anyone who is not"
