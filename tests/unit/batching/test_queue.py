"""The queue: batch contents, priorities, deadlines, lost jobs, and property tests of its invariants."""

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


def _mark_suspect(jobs: Sequence[Job]) -> None:
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
def test_batches_fill_the_token_budget(lengths: list[int], budget: int, batches: list[list[int]]) -> None:
    bench = Bench()
    bench.push(*lengths)
    assert bench.take_all(budget) == batches
    assert len(bench.queue) == bench.queue.num_tokens == 0


def test_a_batch_has_only_the_model_of_the_first_job() -> None:
    bench = Bench()
    for length, model in [(2, "a"), (2, "b"), (2, "a"), (2, "b")]:
        bench.push(length, model=model)
    assert bench.take_all(10) == [[0, 2], [1, 3]]


def test_a_job_that_was_passed_over_is_first_in_the_next_batch() -> None:
    bench = Bench()
    for length in (6, 6, 2):
        bench.push(length)
    assert bench.take() == [0, 2]
    bench.push(2)
    assert bench.take() == [1, 3]


def test_every_fourth_batch_takes_overdue_jobs_before_higher_priorities() -> None:
    bench = Bench()
    for priority in (0, 0, 5, 5, 5, 5, 5, 5):
        bench.push(10, priority=priority)
    assert bench.take_all(now=AGE) == [[2], [3], [4], [0], [5], [6], [7], [1]]
    for priority in (0, 5, 5, 5, 5):
        bench.push(10, now=1.0, priority=priority)
    assert bench.take_all(now=AGE) == [[9], [10], [11], [12], [8]], "no job is overdue"


def test_an_overdue_long_request_takes_only_every_fourth_batch() -> None:
    bench = Bench()
    bench.push(*[5] * 9, now=0.0)
    taken = []
    for _ in range(8):
        bench.push(5, 5, now=AGE, priority=1)
        taken.append(bench.take(now=AGE))
    assert [batch for batch in taken if batch[0] < 9] == [[0, 1], [2, 3]]


def test_an_overdue_job_that_does_not_fit_leaves_the_remaining_tokens_to_others() -> None:
    bench = Bench()
    bench.push(*[10] * 3, priority=1)
    bench.push(6, 6, 4)
    assert [bench.take() for _ in range(3)] == [[0], [1], [2]]
    bench.push(3, now=AGE)
    assert bench.take(now=AGE) == [3, 6]
    assert bench.take(now=AGE) == [4, 5]


def test_a_batch_mixes_priorities_highest_first() -> None:
    bench = Bench()
    for priority in (0, 1, 0, 1):
        bench.push(2, priority=priority)
    assert bench.take(10) == [1, 3, 0, 2]


def test_expired_jobs_are_dropped_on_take() -> None:
    bench = Bench()
    bench.push(2, deadline=5.0)
    bench.push(2)
    bench.push(2, deadline=6.0)
    assert bench.take(10, now=5.0) == [1, 2]
    assert bench.dropped == [("expired", [0])]
    assert bench.queue.num_tokens == 0


def test_cancelled_and_failed_jobs_are_dropped_on_take() -> None:
    bench = Bench()
    pending = [bench.push(2) for _ in range(3)]
    pending[0].close("cancelled")
    pending[2].fail(InferenceFailed("bad"))
    assert bench.take(10) == [1]
    assert bench.dropped == [("cancelled", [0]), ("abandoned", [2])]
    assert len(bench.queue) == bench.queue.num_tokens == 0


def test_take_returns_no_batch_when_every_job_is_expired() -> None:
    bench = Bench()
    bench.push(2, 2, deadline=1.0)
    assert bench.take(10, now=1.0) == []
    assert bench.dropped == [("expired", [0, 1])]


def test_remove_drops_only_waiting_jobs() -> None:
    bench = Bench()
    pending = PendingRequest(rows(5, 5), 0.0)
    jobs = jobs_of(pending)
    bench.queue.push(jobs)
    assert bench.take(5) == [0]
    bench.queue.remove(jobs, "abandoned")
    bench.queue.remove(jobs, "abandoned")
    assert bench.dropped == [("abandoned", [1])]
    assert bench.queue.num_tokens == 0


def test_jobs_given_back_return_to_the_head_in_order() -> None:
    bench = Bench()
    bench.push(*[5] * 6)
    first, second = bench.take_jobs(), bench.take_jobs()
    bench.push(5, priority=9)
    bench.queue.give_back(second)
    bench.queue.give_back(first)
    assert bench.queue.num_tokens == 35
    assert bench.take_all(10) == [[0, 1], [2, 3], [6, 4], [5]]


def test_suspect_jobs_are_taken_one_per_batch_in_order_of_arrival() -> None:
    bench = Bench()
    bench.push(*[2] * 5)
    lost = bench.take_jobs()
    bench.push(2)
    _mark_suspect(lost[1:3])
    bench.queue.give_back(lost)
    assert bench.take_all(10) == [[0], [1], [2], [3, 4, 5]]


def test_jobs_given_back_do_not_mix_models() -> None:
    bench = Bench()
    bench.push(2, model="a")
    bench.push(2, model="b")
    lost = bench.take_jobs() + bench.take_jobs()
    bench.push(2, model="a")
    bench.queue.give_back(lost)
    assert bench.take_all(10) == [[0, 2], [1]]


def test_oldest_arrival_is_that_of_the_oldest_waiting_job() -> None:
    bench = Bench()
    assert bench.queue.oldest_arrival() is None
    bench.push(1, now=7.0, priority=1)
    bench.push(1, now=9.0)
    assert bench.queue.oldest_arrival() == 7.0


def test_the_search_for_jobs_that_fit_is_limited_by_max_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "MAX_PASSED_OVER", 3)
    bench = Bench()
    bench.push(6, 9, 9, 9, 1)
    assert bench.take(10) == [0]


def test_a_long_request_alternates_with_later_requests() -> None:
    bench = Bench()
    bench.push(*[5] * 8)
    assert bench.take() == [0, 1]
    bench.push(5)
    bench.push(5, 5)
    assert bench.take() == [2, 8], "row 2 of the long request comes after row 0 of the later ones"
    assert bench.take() == [9, 3]
    assert bench.take_all() == [[10, 4], [5, 6], [7]]


def test_a_stream_of_small_requests_does_not_starve_a_long_one() -> None:
    bench = Bench()
    bench.push(*[5] * 3)
    taken = []
    for _ in range(4):
        bench.push(5)
        bench.push(5)
        taken.append(bench.take())
    assert [number for number in chain(*taken) if number < 3] == [0, 1, 2]


def test_an_empty_queue_resets_the_shares() -> None:
    bench = Bench()
    bench.push(*[5] * 8)
    bench.take_all()
    bench.push(5, 5, 5)
    bench.push(5)
    assert bench.take_all() == [[8, 11], [9, 10]]


def test_shares_are_counted_per_priority() -> None:
    bench = Bench()
    bench.push(*[5] * 4)
    bench.push(*[5] * 4, priority=1)
    assert bench.take() == [4, 5]
    bench.push(5)
    assert bench.take_all() == [[6, 7], [0, 8], [1, 2], [3]]


def test_rows_taken_for_their_age_do_not_delay_later_requests() -> None:
    bench = Bench()
    bench.push(*[5] * 12, now=0.0)
    assert [bench.take() for _ in range(3)] == [[0, 1], [2, 3], [4, 5]]
    assert bench.take(now=AGE) == [6, 7]
    bench.push(5, now=AGE)
    assert bench.take(now=AGE) == [12, 8], "the overdue batch does not change the order"


@pytest.mark.parametrize(
    ("priority", "batches"), [(0, [[0, 2], [1, 3]]), (1, [[2, 3], [0, 1]]), (-1, [[0, 1], [2, 3]])]
)
def test_a_job_of_two_requests_has_the_better_position_of_the_two(priority: int, batches: list[list[int]]) -> None:
    bench = Bench()
    jobs = jobs_of(PendingRequest(rows(*[5] * 3), 0.0))
    bench.queue.push(jobs)
    second = PendingRequest(rows(5, 5), 0.0, RequestOptions(None, priority))
    jobs[2].waiters.append((second, 0))
    bench.queue.push([jobs[2], *jobs_of(second)[1:]], second.options)
    assert len(bench.queue) == 4
    assert bench.take_all() == batches


def test_a_job_is_checked_a_constant_number_of_times_in_a_long_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts the calls of `Job.is_wanted` per job instead of measuring time."""
    num_checks = 0
    is_wanted = Job.is_wanted

    def counted(job: Job, now: float) -> bool:
        nonlocal num_checks
        num_checks += 1
        return is_wanted(job, now)

    monkeypatch.setattr(Job, "is_wanted", counted)
    bench = Bench()
    for number in range(2000):
        bench.push(1 + number % 3, 1 + number % 2, priority=number % 4)
    assert sum(map(len, bench.take_all(budget=100))) == 4000
    assert num_checks < 3 * 4000


def test_stale_heap_entries_are_removed() -> None:
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
def test_every_job_is_taken_or_dropped_exactly_once(events: list[Request | str], budget: int) -> None:
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
            _mark_suspect(batch)
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
def test_rows_of_a_request_are_taken_in_order(pushed: list[Request], budget: int) -> None:
    """Holds for rows of equal length; a longer row may be passed over."""
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
def test_a_long_request_delays_small_ones_by_at_most_one_batch(num_rows: int, lengths: list[int]) -> None:
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
