"""Fair queueing between accounts: order, weights, tokens ahead and each account's share of the queue."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching.jobs import PendingRequest
from service.batching.queue import DUE_EVERY
from service.domain import RequestOptions
from tests.fakes import rows
from tests.unit.batching.bench import AGE, Bench, jobs_of


class Accounts:
    """A bench that records the account of each job."""

    def __init__(self) -> None:
        self.bench = Bench()
        self.owners: list[str] = []

    def push(self, account: str, *lengths: int, weight: float = 1.0, now: float = 0.0, priority: int = 0) -> None:
        self.bench.push(*lengths, account=account, weight=weight, now=now, priority=priority)
        self.owners += [account] * len(lengths)

    def take(self, budget: int = 10, now: float = 0.0) -> list[str]:
        return [self.owners[number] for number in self.bench.take(budget, now)]

    def taken(self, num_batches: int, now: float = 0.0) -> Counter[str]:
        return Counter(chain.from_iterable(self.take(now=now) for _ in range(num_batches)))


@pytest.mark.parametrize("num_requests", [1, 10, 1000], ids=["one request", "ten requests", "one request per row"])
def test_a_thousand_rows_of_one_account_do_not_delay_another(num_requests: int) -> None:
    accounts = Accounts()
    for _ in range(num_requests):
        accounts.push("bulk", *[5] * (1000 // num_requests))
    accounts.take()
    for _ in range(100):
        accounts.push("live", 5)
        assert accounts.take() == ["live", "bulk"]


@pytest.mark.parametrize(("weight", "num_rows"), [(1.0, 100), (3.0, 150), (0.25, 40)])
def test_accounts_are_served_in_proportion_to_their_weights(weight: float, num_rows: int) -> None:
    accounts = Accounts()
    accounts.push("a", *[5] * 500, weight=weight)
    for _ in range(500):
        accounts.push("b", 5)
    assert accounts.taken(100) == {"a": num_rows, "b": 200 - num_rows}


def test_shares_are_measured_in_tokens() -> None:
    accounts = Accounts()
    accounts.push("long", *[10] * 100)
    accounts.push("short", *[2] * 500)
    assert accounts.taken(60) == {"long": 30, "short": 150}


def test_the_latest_weight_of_an_account_applies() -> None:
    accounts = Accounts()
    accounts.push("a", *[5] * 300)
    accounts.push("b", *[5] * 300)
    assert accounts.taken(10) == {"a": 10, "b": 10}
    accounts.push("a", 5, weight=4.0)
    assert accounts.taken(10) == {"a": 16, "b": 4}


def test_an_idle_account_accumulates_no_credit() -> None:
    accounts = Accounts()
    accounts.push("early", 5)
    accounts.push("steady", *[5] * 200)
    accounts.taken(50)
    accounts.push("early", *[5] * 100)
    assert accounts.taken(20) == {"early": 21, "steady": 19}, "one row first, then alternately"


def test_an_account_served_alone_accumulates_no_debt() -> None:
    accounts = Accounts()
    accounts.push("alone", *[5] * 200)
    accounts.taken(50)
    accounts.push("late", *[5] * 100)
    assert accounts.taken(20) == {"alone": 19, "late": 21}, "one row first, then alternately"


def test_requests_of_one_account_divide_its_share() -> None:
    bench = Bench()
    bench.push(*[5] * 20, account="a")
    bench.push(*[5] * 20, account="b")
    assert bench.take() == [0, 20]
    bench.push(5, account="a")
    assert bench.take() == [1, 21]
    assert bench.take() == [40, 22], "it precedes the third row of the long request"


def test_an_overdue_low_priority_gets_every_fourth_batch() -> None:
    accounts = Accounts()
    accounts.push("a", *[10] * 10, priority=-1)
    accounts.push("b", *[10] * 100)
    assert accounts.taken(8) == {"b": 8}, "no request is overdue"
    assert accounts.taken(5 * DUE_EVERY, now=AGE) == {"a": 5, "b": 15}


def test_rows_taken_for_their_age_are_charged_to_the_account() -> None:
    accounts = Accounts()
    accounts.push("old", *[10] * 100)
    accounts.push("new", *[10] * 100, now=AGE)
    assert accounts.taken(40, now=AGE) == {"old": 21, "new": 19}, "one row more, not one batch in four more"


def test_short_rows_fill_the_batch_after_a_long_row_of_another_account() -> None:
    accounts = Accounts()
    accounts.push("long", *[6] * 100)
    accounts.push("short", *[2] * 100, weight=0.25)
    assert accounts.take() == ["long", "short", "short"]
    assert accounts.take() == ["long", "short", "short"], "the row that was passed over is next"


def test_accounts_of_several_models_share_the_device() -> None:
    bench = Bench()
    bench.push(*[5] * 200, model="m", account="a")
    bench.push(*[5] * 200, model="n", account="b", weight=4.0)
    taken = []
    for _ in range(40):
        taken += bench.take()
        bench.push(5, model="n", account="b", weight=4.0)  # a waiting account keeps its place
    assert sum(number < 200 for number in taken) == 16


@pytest.mark.parametrize(("position", "first"), [(0, [0, 20]), (15, [15, 0])], ids=["own position", "other position"])
def test_a_row_of_two_accounts_has_the_better_position_of_the_two(position: int, first: list[int]) -> None:
    bench = Bench()
    jobs = jobs_of(PendingRequest(rows(*[5] * 20), 0.0))
    bench.queue.push(jobs, RequestOptions(account="bulk"))
    live = PendingRequest(rows(5, 5), 0.0, RequestOptions(account="live", weight=2.0))
    jobs[position].waiters.append((live, 0))
    bench.queue.push([jobs[position], *jobs_of(live)[1:]], live.options)
    bench.push(*[5] * 20, account="bulk")
    assert sorted(bench.take()) == sorted(first)
    assert sum(map(len, bench.take_all())) == 39


@given(
    st.lists(st.floats(0.1, 10.0), min_size=2, max_size=4),
    st.integers(1, 60),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_service_of_two_backlogged_accounts_differs_by_at_most_one_row_of_each(
    weights: list[float], num: int, sizes: list[int]
) -> None:
    """The fairness bound of start-time fair queueing. A batch has one row, so no row is passed over."""
    accounts = Accounts()
    for name, weight in enumerate(weights):
        for _ in range(4):
            accounts.push(str(name), *[sizes[name % len(sizes)]] * 60, weight=weight)
    taken = Counter(chain.from_iterable(accounts.take(budget=1) for _ in range(num)))
    length = {str(name): sizes[name % len(sizes)] for name in range(len(weights))}
    got = {name: taken[name] * length[name] / weights[int(name)] for name in length}
    row = {name: length[name] / weights[int(name)] for name in length}
    for a in got:
        for b in got:
            assert abs(got[a] - got[b]) <= row[a] + row[b] + 1e-9


def test_tokens_ahead_count_requests_of_the_same_account() -> None:
    bench = Bench()
    assert bench.queue.tokens_ahead(RequestOptions(), 10) == 0
    bench.push(*[10] * 50)
    assert bench.queue.tokens_ahead(RequestOptions(), 10) == 10, "of a long request at most its own number of tokens"
    assert bench.queue.tokens_ahead(RequestOptions(), 1) == 10, "at least one row"
    assert bench.queue.tokens_ahead(RequestOptions(), 9999) == 500, "at most the tokens in the queue"
    for _ in range(30):
        bench.push(10)
    assert bench.queue.tokens_ahead(RequestOptions(), 10) == 310
    assert bench.queue.tokens_ahead(RequestOptions(priority=1), 10) == 0
    assert bench.queue.tokens_ahead(RequestOptions(priority=-1), 10) == 800


def test_tokens_ahead_count_other_accounts_by_weight() -> None:
    bench = Bench()
    bench.push(*[10] * 50, account="a", weight=2.0)
    bench.push(*[10] * 3, account="b")
    assert bench.queue.tokens_ahead(RequestOptions(account="c"), 10) == 20 + 10, "twice its tokens for weight 2"
    assert bench.queue.tokens_ahead(RequestOptions(account="c"), 100) == 200 + 30, "at most the tokens in the queue"
    assert bench.queue.tokens_ahead(RequestOptions(account="c", weight=10.0), 100) == 20 + 10
    assert bench.queue.tokens_ahead(RequestOptions(account="b"), 10) == 10 + 40, (
        "two rows of its own account, four of the account of weight 2"
    )


def test_rows_given_back_are_ahead_of_every_priority() -> None:
    bench = Bench()
    bench.push(5, 5)
    bench.queue.give_back(bench.take_jobs())
    assert bench.queue.tokens_ahead(RequestOptions(priority=9), 1) == 10


def test_exceeds_share_when_an_account_fills_its_part_of_the_queue() -> None:
    bench = Bench()
    assert not bench.queue.exceeds_share(RequestOptions(account="a"), 1000, 100), "an empty queue accepts any size"
    bench.push(*[10] * 9, account="a", weight=3.0)
    assert not bench.queue.exceeds_share(RequestOptions(account="a", weight=3.0), 10, 100)
    assert bench.queue.exceeds_share(RequestOptions(account="a", weight=3.0), 11, 100)
    bench.push(10, account="b")
    assert bench.queue.exceeds_share(RequestOptions(account="a", weight=3.0), 0, 100), "its share is three quarters"
    assert not bench.queue.exceeds_share(RequestOptions(account="b"), 15, 100)
    assert bench.queue.exceeds_share(RequestOptions(account="b"), 16, 100)
    bench.take_all()
    assert not bench.queue.exceeds_share(RequestOptions(account="a"), 1000, 100)
