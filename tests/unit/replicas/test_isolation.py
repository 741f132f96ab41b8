"""Isolation of failing rows by halving the batch, and what it learns about the memory."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from service.domain import Encoding, Failure, Output
from service.errors import OutOfMemory
from service.replicas.isolation import MemoryProbe, run_rows
from tests.fakes import HUGE, NAN, POISON, row, rows
from tests.unit.replicas.engines import CountingEngine, sums


class LimitedMemory(CountingEngine):
    """Raises OutOfMemory for a batch of more than `max_tokens`."""

    def __init__(self, max_tokens: int) -> None:
        super().__init__()
        self.tried: list[int] = []
        self._max_tokens = max_tokens

    def run(self, encodings: Sequence[Encoding]) -> list[Output]:
        self.tried.append(sum(encoding.num_tokens for encoding in encodings))
        if self.tried[-1] > self._max_tokens:
            raise OutOfMemory("too large")
        return super().run(encodings)


class FailingAtFirst(CountingEngine):
    """The first `times` forwards fail: they raise or return NaN, depending on `order`."""

    def __init__(self, times: int, order: int) -> None:
        super().__init__()
        self._left = times
        self._order = order

    def run(self, encodings: Sequence[Encoding]) -> list[Output]:
        self._left -= 1
        return super().run([row(self._order)] * len(encodings) if self._left >= 0 else encodings)


def run_all(
    engine: CountingEngine, encodings: Sequence[Encoding], seen: MemoryProbe | None = None
) -> list[Output | Failure]:
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
def test_only_the_failing_rows_fail(ids: list[int], expected: list[float | Failure]) -> None:
    assert sums(run_all(CountingEngine(), [row(each) for each in ids])) == expected


def test_bisection_runs_a_logarithmic_number_of_forwards() -> None:
    engine = CountingEngine()
    run_all(engine, [row(POISON if each == 5 else each) for each in range(16)])
    assert engine.sizes == [16, 8, 4, 4, 2, 1, 1, 2, 8, 1]


def test_a_row_with_nan_is_computed_once_more_alone(caplog: pytest.LogCaptureFixture) -> None:
    engine = CountingEngine()
    run_all(engine, [row(1), row(NAN)])
    assert engine.sizes == [2, 1]
    assert [(record.getMessage(), record.__dict__["rows"]) for record in caplog.records] == [
        ("outputs are not finite", 1)
    ] * 2


@pytest.mark.parametrize("order", [POISON, NAN])
@pytest.mark.parametrize("ids", [[1], [1, 2, 3]])
def test_a_batch_that_fails_once_is_answered_on_retry(order: int, ids: list[int]) -> None:
    seen = MemoryProbe()
    assert sums(run_all(FailingAtFirst(1, order), [row(each) for each in ids], seen)) == ids
    assert seen.has_failed


@pytest.mark.parametrize(
    ("memory", "lengths", "fitting", "tried"),
    [
        pytest.param(100, (50, 50), None, [100], id="memory for all"),
        pytest.param(60, (25, 25, 25, 25), 50, [100, 50, 50], id="memory for half"),
        pytest.param(30, (25, 25, 25, 25), 25, [100, 50, 25, 25, 50, 25, 25], id="memory for a quarter"),
        pytest.param(95, (90, 10), 90, [100, 90, 10], id="memory for all but a short row"),
        pytest.param(300, (500, 10), 250, [510, 500, 10], id="no memory for the long row"),
        pytest.param(1, (500,), 250, [500], id="no memory for the only row"),
    ],
)
def test_fitting_tokens_are_the_largest_batch_that_fits(
    memory: int, lengths: tuple[int, ...], fitting: int | None, tried: list[int]
) -> None:
    engine, seen = LimitedMemory(memory), MemoryProbe()
    outputs = run_all(engine, rows(*lengths), seen)
    assert seen.fitting_tokens == fitting
    assert engine.tried == tried
    assert [each == "out_of_memory" for each in outputs] == [length > memory for length in lengths]


def test_a_failure_is_logged_without_its_message(caplog: pytest.LogCaptureFixture) -> None:
    run_all(CountingEngine(), [row(POISON, 1)])
    assert [(record.getMessage(), record.__dict__["tokens"]) for record in caplog.records] == [
        ("forward failed", 2)
    ] * 2
