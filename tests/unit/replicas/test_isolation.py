"""A batch halved: which rows fail, why, and what was learned of the memory."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from service.domain import Encoding, Failure, Output
from service.errors import OutOfMemory
from service.replicas.isolation import MemoryProbe, run_rows
from tests.fakes import HUGE, NAN, POISON, row, rows
from tests.unit.replicas.engines import Counted, sums


class Small(Counted):
    """Has memory for so many tokens."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.tried: list[int] = []
        self._room = room

    def run(self, encodings: Sequence[Encoding]) -> list[Output]:
        self.tried.append(sum(encoding.num_tokens for encoding in encodings))
        if self.tried[-1] > self._room:
            raise OutOfMemory("too large")
        return super().run(encodings)


class Stumbling(Counted):
    """Fails `times` times, by raising or with numbers that are none."""

    def __init__(self, times: int, order: int) -> None:
        super().__init__()
        self._left = times
        self._order = order

    def run(self, encodings: Sequence[Encoding]) -> list[Output]:
        self._left -= 1
        return super().run([row(self._order)] * len(encodings) if self._left >= 0 else encodings)


def run_all(engine: Counted, encodings: Sequence[Encoding], seen: MemoryProbe | None = None) -> list[Output | Failure]:
    return run_rows(engine, encodings, seen or MemoryProbe(), engine.prepare(encodings))


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1], [1]),
        ([POISON], ["failed"]),
        ([1, 2, 3], [1, 2, 3]),
        ([1, POISON, 3], [1, "failed", 3]),
        ([POISON, 2, 3, POISON, 5], ["failed", 2, 3, "failed", 5]),
        ([POISON, POISON], ["failed", "failed"]),
        ([1, NAN, 3], [1, "failed", 3]),
        ([1, HUGE, 3], [1, "out_of_memory", 3]),
        ([NAN, POISON, HUGE, 4], ["failed", "failed", "out_of_memory", 4]),
    ],
)
def test_bisection(ids: list[int], expected: list[float | Failure]) -> None:
    assert sums(run_all(Counted(), [row(each) for each in ids])) == expected


def test_bisection_takes_the_logarithm() -> None:
    engine = Counted()
    run_all(engine, [row(POISON if each == 5 else each) for each in range(16)])
    assert engine.sizes == [16, 8, 4, 4, 2, 1, 1, 2, 8, 1]


def test_a_row_that_is_not_finite_is_computed_once_more_alone(caplog: pytest.LogCaptureFixture) -> None:
    engine = Counted()
    run_all(engine, [row(1), row(NAN)])
    assert engine.sizes == [2, 1]
    assert [(record.getMessage(), record.__dict__["rows"]) for record in caplog.records] == [
        ("outputs are not finite", 1)
    ] * 2


@pytest.mark.parametrize("order", [POISON, NAN])
@pytest.mark.parametrize("ids", [[1], [1, 2, 3]])
def test_a_device_that_stumbles_once_costs_no_answer(order: int, ids: list[int]) -> None:
    seen = MemoryProbe()
    assert sums(run_all(Stumbling(1, order), [row(each) for each in ids], seen)) == ids
    assert seen.has_failed


@pytest.mark.parametrize(
    ("memory", "lengths", "fitting", "tried"),
    [
        pytest.param(100, (50, 50), None, [100], id="enough"),
        pytest.param(60, (25, 25, 25, 25), 50, [100, 50, 50], id="for half"),
        pytest.param(30, (25, 25, 25, 25), 25, [100, 50, 25, 25, 50, 25, 25], id="for a quarter"),
        pytest.param(95, (90, 10), 90, [100, 90, 10], id="for all but a short row"),
        pytest.param(300, (500, 10), 250, [510, 500, 10], id="not for the long row: half of that may do"),
        pytest.param(1, (500,), 250, [500], id="not for the only row"),
    ],
)
def test_what_is_learned_of_the_memory(
    memory: int, lengths: tuple[int, ...], fitting: int | None, tried: list[int]
) -> None:
    engine, seen = Small(memory), MemoryProbe()
    outputs = run_all(engine, rows(*lengths), seen)
    assert seen.fitting_tokens == fitting
    assert engine.tried == tried
    assert [each == "out_of_memory" for each in outputs] == [length > memory for length in lengths]


def test_a_failure_is_logged_without_its_message(caplog: pytest.LogCaptureFixture) -> None:
    run_all(Counted(), [row(POISON, 1)])
    assert [(record.getMessage(), record.__dict__["tokens"]) for record in caplog.records] == [
        ("forward failed", 2)
    ] * 2
