"""MemoryBudget: room for small and large requests, reclaiming, and the default size."""

from __future__ import annotations

import pytest

from service.api.memory import DEFAULT_BYTES, SMALL_BYTES, MemoryBudget, default_budget
from service.errors import MemoryFull

GIB = 2**30
TOTAL = 16 * SMALL_BYTES


@pytest.mark.parametrize(
    ("memory", "max_body", "budget"),
    [
        (64 * GIB, 8 * 2**20, DEFAULT_BYTES),
        (2 * GIB, 8 * 2**20, 128 * 2**20),
        (GIB // 4, 8 * 2**20, 64 * 2**20),
    ],
)
def test_default_fits_the_machine_and_the_largest_request(memory: int, max_body: int, budget: int) -> None:
    assert default_budget(memory, max_body) == budget


def test_large_requests_leave_room_for_small_ones() -> None:
    budget = MemoryBudget(TOTAL)
    assert budget.take(TOTAL * 3 // 4)
    assert not budget.take(SMALL_BYTES + 1)
    assert not budget.take(1, held=SMALL_BYTES), "part of a request that is large already"
    assert budget.take(SMALL_BYTES)
    assert budget.used == TOTAL * 3 // 4 + SMALL_BYTES


def test_a_full_budget_refuses_small_requests_until_bytes_are_given_back() -> None:
    budget = MemoryBudget(TOTAL)
    budget.add(TOTAL)
    with pytest.raises(MemoryFull) as caught, budget.reserved(1):
        pass
    assert caught.value.retry_after_s
    budget.give(1)
    with budget.reserved(1):
        assert budget.used == TOTAL
    assert budget.used == TOTAL - 1


def test_memory_is_reclaimed_as_long_as_it_helps() -> None:
    budget = MemoryBudget(TOTAL)
    budget.add(TOTAL)
    freed = [SMALL_BYTES // 2, SMALL_BYTES // 2]

    def reclaim() -> bool:
        if freed:
            budget.give(freed.pop())
            return True
        return False

    budget.reclaim = reclaim
    assert budget.take(SMALL_BYTES)
    assert not budget.take(1)
