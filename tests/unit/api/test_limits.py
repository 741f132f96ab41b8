"""Buckets and accounts under a clock that the test turns."""

from __future__ import annotations

import pytest

from service.api.keys import Rights
from service.api.limits import CONCURRENCY_RETRY_S, Account, Bucket, Refusal
from tests.fakes import FakeClock


def bucket(rate: float) -> tuple[Bucket, FakeClock]:
    clock = FakeClock()
    made = Bucket(clock)
    made.set_rate(rate)
    return made, clock


def drawn(made: Bucket, at_most: int = 100) -> int:
    """How often 1 can be drawn at once."""
    for count in range(at_most):
        if made.wait_s():
            return count
        made.draw(1)
    return at_most


def test_a_bucket_holds_what_one_second_brings() -> None:
    made, clock = bucket(4)
    assert drawn(made) == 4
    clock.now += 0.5
    assert drawn(made) == 2
    clock.now += 60
    assert drawn(made) == 4


def test_a_slow_bucket_holds_one() -> None:
    made, clock = bucket(0.5)
    assert drawn(made) == 1
    clock.now += 60
    assert drawn(made) == 1


def test_the_wait_is_exact() -> None:
    made, clock = bucket(4)
    drawn(made)
    clock.now += 0.125
    assert made.wait_s() == pytest.approx(0.125, abs=1e-5)
    clock.now += made.wait_s()
    assert made.wait_s() == 0.0


def test_a_debt_closes_it_until_it_is_paid() -> None:
    made, clock = bucket(100)
    made.draw(1000)
    assert made.wait_s() == pytest.approx(9.01, abs=1e-5)
    clock.now += 9
    assert made.wait_s() > 0
    clock.now += 0.01
    assert made.wait_s() == 0.0


def test_without_a_rate_it_never_closes() -> None:
    made, _ = bucket(0)
    made.draw(1e9)
    assert made.wait_s() == 0.0


def test_another_rate_neither_fills_nor_empties_it() -> None:
    made, clock = bucket(4)
    drawn(made)
    made.set_rate(100)
    assert drawn(made) == 0
    clock.now += 0.05
    assert drawn(made) == 5
    clock.now += 60
    made.set_rate(2)
    assert drawn(made) == 2


def test_a_limit_that_is_new_starts_full() -> None:
    made, _ = bucket(0)
    made.set_rate(3)
    assert drawn(made) == 3


def test_an_account_is_refused_at_each_of_its_limits() -> None:
    clock = FakeClock()
    account = Account("a", Rights(requests_per_s=2, tokens_per_s=100, concurrency=2), clock)
    account.enter()
    account.enter()
    assert account.refusal() == Refusal("concurrency", "2 requests of this key run already", CONCURRENCY_RETRY_S)
    account.leave()
    refusal = account.refusal()
    assert refusal is not None
    assert (refusal.reason, refusal.detail) == ("requests", "this key may send 2 requests a second")
    assert refusal.wait_s == pytest.approx(0.5, abs=1e-5)
    account.spend(150)
    clock.now += 0.5
    refusal = account.refusal()
    assert refusal is not None
    assert (refusal.reason, refusal.detail) == ("tokens", "this key may use 100 tokens a second")
    assert refusal.wait_s == pytest.approx(0.01, abs=1e-5)
    clock.now += 0.01
    assert account.refusal() is None


def test_new_rights_keep_what_runs_and_what_is_owed() -> None:
    clock = FakeClock()
    account = Account("a", Rights(tokens_per_s=100), clock)
    account.enter()
    account.spend(300)
    account.grant(Rights(tokens_per_s=200, concurrency=1))
    assert account.refusal() == Refusal("concurrency", "1 requests of this key run already", CONCURRENCY_RETRY_S)
    account.leave()
    refusal = account.refusal()
    assert refusal is not None
    assert refusal.wait_s == pytest.approx(201 / 200, abs=1e-5)


@pytest.mark.parametrize(
    ("cap", "asked", "given"),
    [("interactive", "bulk", "bulk"), ("interactive", "interactive", "interactive"), ("bulk", "interactive", "bulk")],
)
def test_a_bulk_key_never_goes_first(cap: str, asked: str, given: str) -> None:
    assert Account("a", Rights(priority=cap)).priority(asked) == given  # type: ignore[arg-type]
