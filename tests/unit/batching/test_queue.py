"""The queue by table, with a fake clock, and its invariants under hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching import queue as queue_module
from service.batching.fair_share import QueuePosition
from service.batching.jobs import Job, PendingRequest
from service.batching.queue import LazyHeap
from service.domain import RequestOptions
from service.errors import InferenceFailed
from tests.fakes import rows
from tests.unit.batching.bench import AGE, Bench, jobs_of, numbers_of


def _blame(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.num_losses += 1


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


def test_what_was_passed_over_leads_the_next_batch() -> None:
    bench = Bench()
    for length in (6, 6, 2):
        bench.push(length)
    assert bench.take() == [0, 2]
    bench.push(2)
    assert bench.take() == [1, 3]


def test_priority_goes_first_but_every_fourth_batch_is_for_who_waits_too_long() -> None:
    bench = Bench()
    for priority in (0, 0, 5, 5, 5, 5, 5, 5):
        bench.push(10, priority=priority)
    assert bench.take_all(now=AGE) == [[2], [3], [4], [0], [5], [6], [7], [1]]
    for priority in (0, 5, 5, 5, 5):
        bench.push(10, now=1.0, priority=priority)
    assert bench.take_all(now=AGE) == [[9], [10], [11], [12], [8]], "nobody has waited too long"


def test_a_long_request_that_is_overdue_holds_others_back_by_every_fourth_batch() -> None:
    bench = Bench()
    bench.push(*[5] * 9, now=0.0)
    taken = []
    for _ in range(8):
        bench.push(5, 5, now=AGE, priority=1)
        taken.append(bench.take(now=AGE))
    assert [batch for batch in taken if batch[0] < 9] == [[0, 1], [2, 3]]


def test_what_is_overdue_and_does_not_fit_leaves_the_rest_to_the_others() -> None:
    bench = Bench()
    bench.push(*[10] * 3, priority=1)
    bench.push(6, 6, 4)
    assert [bench.take() for _ in range(3)] == [[0], [1], [2]]
    bench.push(3, now=AGE)
    assert bench.take(now=AGE) == [3, 6]
    assert bench.take(now=AGE) == [4, 5]


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
    pending = [bench.push(2) for _ in range(3)]
    pending[0].close("cancelled")
    pending[2].fail(InferenceFailed("bad"))
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
    pending = PendingRequest(rows(5, 5), 0.0)
    jobs = jobs_of(pending)
    bench.queue.push(jobs)
    assert bench.take(5) == [0]
    bench.queue.remove(jobs, "abandoned")
    bench.queue.remove(jobs, "abandoned")
    assert bench.dropped == [("abandoned", [1])]
    assert bench.queue.num_tokens == 0


def test_lost_jobs_go_to_the_head_in_order() -> None:
    bench = Bench()
    bench.push(*[5] * 6)
    first, second = bench.take_jobs(), bench.take_jobs()
    bench.push(5, priority=9)
    bench.queue.give_back(second)
    bench.queue.give_back(first)
    assert bench.queue.num_tokens == 35
    assert bench.take_all(10) == [[0, 1], [2, 3], [6, 4], [5]]


def test_suspects_go_alone_and_in_order_of_arrival() -> None:
    bench = Bench()
    bench.push(*[2] * 5)
    lost = bench.take_jobs()
    bench.push(2)
    _blame(lost[1:3])
    bench.queue.give_back(lost)
    assert bench.take_all(10) == [[0], [1], [2], [3, 4, 5]]


def test_lost_jobs_lead_but_do_not_mix_models() -> None:
    bench = Bench()
    bench.push(2, model="a")
    bench.push(2, model="b")
    lost = bench.take_jobs() + bench.take_jobs()
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


def test_a_long_request_stands_beside_those_that_come_later() -> None:
    bench = Bench()
    bench.push(*[5] * 8)
    assert bench.take() == [0, 1]
    bench.push(5)
    bench.push(5, 5)
    assert bench.take() == [2, 8], "it is in its third row, they are in their first"
    assert bench.take() == [9, 3]
    assert bench.take_all() == [[10, 4], [5, 6], [7]]


def test_a_stream_of_small_requests_does_not_stop_a_long_one() -> None:
    bench = Bench()
    bench.push(*[5] * 3)
    taken = []
    for _ in range(4):
        bench.push(5)
        bench.push(5)
        taken.append(bench.take())
    assert [number for number in chain(*taken) if number < 3] == [0, 1, 2]


def test_an_idle_queue_forgets_who_had_how_much() -> None:
    bench = Bench()
    bench.push(*[5] * 8)
    bench.take_all()
    bench.push(5, 5, 5)
    bench.push(5)
    assert bench.take_all() == [[8, 11], [9, 10]]


def test_shares_are_within_a_priority() -> None:
    bench = Bench()
    bench.push(*[5] * 4)
    bench.push(*[5] * 4, priority=1)
    assert bench.take() == [4, 5]
    bench.push(5)
    assert bench.take_all() == [[6, 7], [0, 8], [1, 2], [3]]


def test_what_went_first_for_its_age_does_not_put_back_those_that_come() -> None:
    bench = Bench()
    bench.push(*[5] * 12, now=0.0)
    assert [bench.take() for _ in range(3)] == [[0, 1], [2, 3], [4, 5]]
    assert bench.take(now=AGE) == [6, 7]
    bench.push(5, now=AGE)
    assert bench.take(now=AGE) == [12, 8], "as if the batch before had not been"


@pytest.mark.parametrize(
    ("priority", "batches"), [(0, [[0, 2], [1, 3]]), (1, [[2, 3], [0, 1]]), (-1, [[0, 1], [2, 3]])]
)
def test_a_job_of_two_requests_has_the_better_place(priority: int, batches: list[list[int]]) -> None:
    bench = Bench()
    jobs = jobs_of(PendingRequest(rows(*[5] * 3), 0.0))
    bench.queue.push(jobs)
    second = PendingRequest(rows(5, 5), 0.0, RequestOptions(None, priority))
    jobs[2].waiters.append((second, 0))
    bench.queue.push([jobs[2], *jobs_of(second)[1:]], second.options)
    assert len(bench.queue) == 4
    assert bench.take_all() == batches


def test_long_queues_are_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: how often a job is looked at, per job that is pushed and taken."""
    looks = 0
    is_wanted = Job.is_wanted

    def counted(job: Job, now: float) -> bool:
        nonlocal looks
        looks += 1
        return is_wanted(job, now)

    monkeypatch.setattr(Job, "is_wanted", counted)
    bench = Bench()
    for number in range(2000):
        bench.push(1 + number % 3, 1 + number % 2, priority=number % 4)
    assert sum(map(len, bench.take_all(budget=100))) == 4000
    assert looks < 3 * 4000


def test_what_is_stale_is_cleared_away() -> None:
    bench = Bench()
    (job,) = jobs_of(bench.push(10))
    lane, entry = LazyHeap({job.number}), job.position.entry
    for tag in range(10_000, 0, -1):
        job.position = QueuePosition(entry, tag)
        lane.push(job)
    assert len(lane) < 1000
    assert lane.first() is job


Request = tuple[list[int], str, int, str]
requests = st.tuples(
    st.lists(st.integers(1, 30), min_size=1, max_size=12),
    st.sampled_from("ab"),
    st.integers(0, 2),
    st.sampled_from("xyz"),
)
events = st.lists(st.one_of(requests, st.sampled_from(["take", "lose", "cancel", "later"])), max_size=40)


@given(events, st.integers(1, 40))
def test_nothing_is_lost_or_taken_twice(events: list[Request | str], budget: int) -> None:
    bench, now = Bench(), 0.0
    bench.models.tokens = budget
    pending: list[PendingRequest] = []
    taken: list[Job] = []
    for event in events:
        batch = bench.take_jobs(now) if event in ("take", "lose") else []
        _check_batch(batch, budget)
        if isinstance(event, tuple):
            lengths, model, priority, account = event
            pending.append(bench.push(*lengths, now=now, model=model, priority=priority, account=account))
        elif event == "lose" and not any(job.num_losses for job in batch):
            _blame(batch)
            bench.queue.give_back(batch)
        elif event == "cancel" and pending:
            pending[len(taken) % len(pending)].close("cancelled")
        else:
            now += AGE / 4
            taken += batch
    while batch := bench.take_jobs(now):
        _check_batch(batch, budget)
        taken += batch
    dropped = list(chain.from_iterable(numbers for _, numbers in bench.dropped))
    num_pushed = sum(len(pending.encodings) for pending in pending)
    assert sorted(numbers_of(taken) + dropped) == list(range(num_pushed))
    assert len(bench.queue) == bench.queue.num_tokens == len(list(bench.queue.waiting())) == 0
    assert bench.queue.tokens_ahead(RequestOptions(priority=-1), 1) == 0


@given(st.lists(requests, max_size=10), st.integers(1, 40))
def test_a_request_is_taken_in_its_order(pushed: list[Request], budget: int) -> None:
    """For rows of one length: others may be passed over."""
    bench = Bench()
    for lengths, model, priority, account in pushed:
        bench.push(*[lengths[0]] * len(lengths), model=model, priority=priority, account=account)
    numbers = list(chain(*bench.take_all(budget)))
    start = 0
    for lengths, *_ in pushed:
        own = range(start, start + len(lengths))
        assert [number for number in numbers if number in own] == list(own)
        start += len(lengths)


@given(st.integers(2, 60), st.lists(st.integers(1, 10), min_size=1, max_size=10))
def test_a_long_request_holds_a_small_one_back_by_a_batch_at_most(num_rows: int, lengths: list[int]) -> None:
    bench = Bench()
    bench.push(*[5] * num_rows)
    bench.take()
    for length in lengths:
        bench.push(length)
    order = list(chain(*bench.take_all()))
    last_small = max(order.index(num_rows + number) for number in range(len(lengths)))
    assert sum(number < num_rows for number in order[:last_small]) <= 1 + max(lengths) // 5


def _check_batch(batch: list[Job], budget: int) -> None:
    assert len({job.encoding.model for job in batch}) <= 1
    assert len(batch) <= 1 or sum(job.num_tokens for job in batch) <= budget
