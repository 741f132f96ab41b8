"""What a child does with a batch, without the process around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import pytest

from service.domain import Encoding, Output, Step
from service.replicas.child import Prepared, compute, load, measure, prepare, profiles, run_rows
from service.replicas.messages import Batch, Loading, Profile, Result, Spec, ToParent
from service.replicas.pool import keep_logs_as_they_are, names
from service.replicas.replica import back_off_s
from tests.fakes import POISON, FakeEngine, checkpoint, load_fake, row


class Counted(FakeEngine):
    """Remembers the size of each forward; may be broken for good."""

    def __init__(self, *, is_broken: bool = False) -> None:
        super().__init__(Path())
        self.sizes: list[int] = []
        self.num_warm_ups = 0
        self._is_broken = is_broken

    def warm_up(self) -> None:
        self.num_warm_ups += 1
        if self._is_broken:
            raise RuntimeError("the device is lost")

    def run(self, encodings: Sequence[Encoding]) -> list[Output]:
        self.sizes.append(len(encodings))
        if self._is_broken:
            raise RuntimeError("the device is lost")
        return super().run(encodings)


def compute_now(engines: Mapping[str, Counted], batch: Batch) -> Result:
    return compute(engines, prepare(engines, batch), free_since=0.0)


def sums(outputs: Sequence[Output | None]) -> list[float | None]:
    return [None if output is None else float(output.scores[0, 0]) for output in outputs]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1], [1]),
        ([POISON], [None]),
        ([1, 2, 3], [1, 2, 3]),
        ([1, POISON, 3], [1, None, 3]),
        ([POISON, 2, 3, POISON, 5], [None, 2, 3, None, 5]),
        ([POISON, POISON], [None, None]),
    ],
)
def test_bisection(ids: list[int], expected: list[float | None]) -> None:
    assert sums(run_rows(Counted(), [row(each) for each in ids])) == expected


def test_bisection_takes_the_logarithm() -> None:
    engine = Counted()
    run_rows(engine, [row(POISON if each == 5 else each) for each in range(16)])
    assert engine.sizes == [16, 8, 4, 4, 2, 1, 1, 2, 8]


def test_a_failure_is_logged_without_its_message(caplog: pytest.LogCaptureFixture) -> None:
    run_rows(Counted(), [row(POISON, 1)])
    assert [(record.getMessage(), record.__dict__["tokens"]) for record in caplog.records] == [("forward failed", 2)]


def test_a_batch_goes_to_its_models_engine() -> None:
    first, second = Counted(), Counted()
    result = compute_now({"a": first, "b": second}, Batch(7, [row(1, 2, model="b")]))
    assert (result.number, sums(result.outputs)) == (7, [3])
    assert result.compute_s > 0
    assert (first.sizes, second.sizes) == ([], [1])


class Unprepared(Counted):
    """Cannot even pack a batch that holds a poisoned row."""

    def prepare(self, encodings: Sequence[Encoding]) -> Callable[[], list[Output]]:
        outputs = self.run(encodings)
        return lambda: outputs


def test_what_fails_while_the_batch_before_computes_fails_in_its_own_turn() -> None:
    engines = {"m": Unprepared()}
    prepared = prepare(engines, Batch(0, [row(1), row(POISON), row(3)]))
    assert sums(compute(engines, prepared, free_since=0.0).outputs) == [1, None, 3]


def test_the_wait_for_the_batch_before_is_not_computing() -> None:
    engines = {"m": Counted()}
    prepared = prepare(engines, Batch(0, [row(1)]))
    long_ago = replace(prepared, started=prepared.started - 1000)
    assert compute(engines, long_ago, free_since=0.0).compute_s > 1000
    assert compute(engines, long_ago, free_since=prepared.started).compute_s < 1000


def test_an_engine_is_tried_after_a_batch_that_failed_as_a_whole() -> None:
    engine = Counted()
    assert sums(compute_now({"m": engine}, Batch(0, [row(POISON)])).outputs) == [None]
    assert engine.num_warm_ups == 1


def test_a_broken_engine_ends_the_process() -> None:
    with pytest.raises(RuntimeError, match="the device is lost"):
        compute_now({"m": Counted(is_broken=True)}, Batch(0, [row(1), row(2)]))


def test_loading_tells_each_percent_once(tmp_path: Path) -> None:
    def load_slowly(*args: object, progress: object, **kwargs: object) -> FakeEngine:
        for done in range(1001):
            progress(done, 1000)  # type: ignore[operator]
        return Counted()

    told: list[ToParent] = []
    spec = Spec((checkpoint(tmp_path, "a"),), "cpu", "auto", load_slowly, keep_logs_as_they_are)
    engines = load(spec, told.append)
    assert [message.done for message in told if isinstance(message, Loading)] == list(range(0, 1001, 10))
    assert isinstance(engines["a"], Counted)
    assert engines["a"].num_warm_ups == 1


def test_every_checkpoint_gets_an_engine(tmp_path: Path) -> None:
    checkpoints = (checkpoint(tmp_path, "a"), checkpoint(tmp_path, "b"))
    engines = load(Spec(checkpoints, "cpu", "auto", load_fake, keep_logs_as_they_are), lambda message: None)
    assert list(engines) == ["a", "b"]


def test_names() -> None:
    assert names(["cuda:0", "cpu", "cpu"]) == ["cuda:0", "cpu", "cpu#2"]


def test_back_off() -> None:
    assert [back_off_s(failures) for failures in range(1, 10)] == [0, 1, 2, 4, 8, 16, 30, 30, 30]


class Told:
    """The pipe's end that is written to."""

    def __init__(self) -> None:
        self.messages: list[ToParent] = []

    def send(self, message: ToParent) -> None:
        self.messages.append(message)


class Unmeasurable(FakeEngine):
    def profile(self) -> Iterator[Step]:
        yield Step(16, 1, 0.5)
        raise RuntimeError("the device has moods")


def test_one_forward_is_measured_between_two_batches_until_all_are() -> None:
    engines = {"m": FakeEngine(Path()), "n": FakeEngine(Path())}
    measuring, told = profiles(engines), Told()
    batches: SimpleQueue[Prepared | None] = SimpleQueue()
    batches.put(prepare(engines, Batch(0, [row(1)])))
    told_after = []
    for _ in range(9):
        measure(measuring, told, batches)
        told_after.append(len(told.messages))
    assert told_after == [0, 0, 0, 1, 1, 1, 1, 2, 2], "each profile is three forwards"
    assert told.messages == [Profile(name, tuple(engine.profile())) for name, engine in engines.items()]


def test_all_is_measured_while_there_is_no_batch() -> None:
    engines = {"m": FakeEngine(Path()), "n": FakeEngine(Path())}
    told = Told()
    measure(profiles(engines), told, SimpleQueue())
    assert [message.model for message in told.messages] == ["m", "n"]


def test_a_profile_that_fails_is_cut_short() -> None:
    found = [each for each in profiles({"m": Unmeasurable(Path())}) if each]
    assert found == [Profile("m", (Step(16, 1, 0.5),))]
