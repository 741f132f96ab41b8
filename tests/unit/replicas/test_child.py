"""What a child does from batch to batch, without the process around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import pytest

from service.domain import Encoding, Output, Step
from service.errors import DeviceFailure, OutOfMemory
from service.replicas.canary import Canary
from service.replicas.child import Prepared, advance, compute, load, measure_profiles, prepare, work
from service.replicas.isolation import MemoryProbe
from service.replicas.pool import keep_default_logs, replica_names
from service.replicas.protocol import Checked, ComputeRequest, ComputeResponse, Loading, Profile, Spec, ToParent
from tests.fakes import BREAK, NAN, POISON, SILENT_BREAK, FakeClock, FakeEngine, checkpoint, load_fake, row
from tests.unit.replicas.engines import Counted, sums


class OnMessage:
    """The pipe's end that is written to."""

    def __init__(self) -> None:
        self.messages: list[ToParent] = []
        self.has_died = False

    def send(self, message: ToParent) -> None:
        self.messages.append(message)

    def results(self) -> list[int]:
        return [message.number for message in self.messages if isinstance(message, ComputeResponse)]

    def checks(self) -> list[str | None]:
        return [message.wrong for message in self.messages if isinstance(message, Checked)]


def compute_now(engines: Mapping[str, Counted], batch: ComputeRequest) -> ComputeResponse:
    return compute(engines, prepare(engines, batch), MemoryProbe(), free_since=0.0)


def test_a_batch_goes_to_its_models_engine() -> None:
    first, second = Counted(), Counted()
    result = compute_now({"a": first, "b": second}, ComputeRequest(7, [row(1, 2, model="b")]))
    assert (result.number, sums(result.outputs), result.fitting_tokens) == (7, [3], None)
    assert result.compute_s > 0
    assert (first.sizes, second.sizes) == ([], [1])


class Unprepared(Counted):
    """Cannot even pack a batch that holds a poisoned row."""

    def prepare(self, encodings: Sequence[Encoding]) -> Callable[[], list[Output]]:
        outputs = self.run(encodings)
        return lambda: outputs


def test_what_fails_while_the_batch_before_computes_fails_in_its_own_turn() -> None:
    engines = {"m": Unprepared()}
    prepared = prepare(engines, ComputeRequest(0, [row(1), row(POISON), row(3)]))
    assert sums(compute(engines, prepared, MemoryProbe(), free_since=0.0).outputs) == [1, "failed", 3]


def test_the_wait_for_the_batch_before_is_not_computing() -> None:
    engines = {"m": Counted()}
    prepared = prepare(engines, ComputeRequest(0, [row(1)]))
    long_ago = replace(prepared, started=prepared.started - 1000)
    assert compute(engines, long_ago, MemoryProbe(), free_since=long_ago.started).compute_s > 1000
    assert compute(engines, long_ago, MemoryProbe(), free_since=prepared.started).compute_s < 1000


def work_through(*batches: list[int], interval_s: float = 0.0, clock: FakeClock | None = None) -> OnMessage:
    """What is told of these batches, and of the stop after them."""
    engines = {"m": FakeEngine(Path())}
    canary, told = Canary(engines, interval_s, clock or FakeClock()), OnMessage()
    queue: SimpleQueue[Prepared | None] = SimpleQueue()
    for number, ids in enumerate(batches):
        queue.put(prepare(engines, ComputeRequest(number, [row(each) for each in ids])))
    queue.put(None)
    try:
        work(engines, canary, told, queue)
    except DeviceFailure:
        told.has_died = True
    return told


def test_batches_are_answered_until_the_stop() -> None:
    told = work_through([1], [2, 3])
    assert (told.results(), told.checks(), told.has_died) == ([0, 1], [], False)


@pytest.mark.parametrize("bad", [POISON, NAN])
def test_after_a_row_that_failed_the_canary_is_looked_after_first(bad: int) -> None:
    told = work_through([1, bad], [2])
    kinds = [type(message) for message in told.messages if isinstance(message, ComputeResponse | Checked)]
    assert kinds == [Checked, ComputeResponse, ComputeResponse]
    assert told.checks() == [None]


def test_a_batch_that_broke_the_device_is_not_answered() -> None:
    told = work_through([1], [BREAK], [2])
    assert (told.results(), told.checks(), told.has_died) == ([0], ["m"], True)


def test_between_two_batches_the_canary_is_looked_after_when_it_is_time() -> None:
    """There are two looks at the clock for each batch, so it is time after every third."""
    batches = ([1], [2], [3], [4], [SILENT_BREAK], [6], [7], [8])
    told = work_through(*batches, interval_s=60.0, clock=Ticking(10.0))
    assert (told.results(), told.checks(), told.has_died) == ([0, 1, 2, 3, 4, 5], [None, "m"], True)


class Ticking(FakeClock):
    """Each look takes so many seconds."""

    def __init__(self, step_s: float) -> None:
        super().__init__()
        self._step_s = step_s

    def __call__(self) -> float:
        self.now += self._step_s
        return self.now


class Dying(FakeEngine):
    """Its process does not get over a second batch, nor over being measured."""

    def run(self, encodings: Sequence[Encoding]) -> list[Output]:
        if encodings[0].ids[0] == 2:
            raise DeviceFailure("never again")
        return super().run(encodings)

    def profile(self) -> Iterator[Step]:
        raise DeviceFailure("never again")
        yield


def test_a_process_that_is_at_its_end_answers_no_more() -> None:
    engines, told = {"m": Dying(Path())}, OnMessage()
    queue: SimpleQueue[Prepared | None] = SimpleQueue()
    queue.put(prepare(engines, ComputeRequest(0, [row(2), row(3)])))
    with pytest.raises(DeviceFailure):
        work(engines, Canary(engines, 0.0), told, queue)
    assert told.messages == []
    with pytest.raises(DeviceFailure):
        compute(engines, prepare(engines, ComputeRequest(0, [row(2), row(3)])), MemoryProbe(), free_since=0.0)


class Unmeasurable(FakeEngine):
    def profile(self) -> Iterator[Step]:
        yield Step(16, 1, 0.5)
        raise RuntimeError("the device has moods")


class Small(FakeEngine):
    def profile(self) -> Iterator[Step]:
        yield from (Step(16, 1, 0.5), Step(32, 2, 0.5))
        raise OutOfMemory("no room for 64 tokens")


def test_one_forward_is_measured_between_two_batches_until_all_are() -> None:
    engines = {"m": FakeEngine(Path()), "n": FakeEngine(Path())}
    measuring, told = measure_profiles(engines), OnMessage()
    batches: SimpleQueue[Prepared | None] = SimpleQueue()
    batches.put(prepare(engines, ComputeRequest(0, [row(1)])))
    told_after = []
    for _ in range(9):
        advance(measuring, told, batches)
        told_after.append(len(told.messages))
    assert told_after == [0, 0, 0, 1, 1, 1, 1, 2, 2], "each profile is three forwards"
    assert told.messages == [Profile(name, tuple(engine.profile())) for name, engine in engines.items()]


def test_all_is_measured_while_there_is_no_batch() -> None:
    engines = {"m": FakeEngine(Path()), "n": FakeEngine(Path())}
    told = OnMessage()
    advance(measure_profiles(engines), told, SimpleQueue())
    assert [message.model for message in told.messages if isinstance(message, Profile)] == ["m", "n"]


def test_a_profile_that_fails_is_cut_short() -> None:
    found = [each for each in measure_profiles({"m": Unmeasurable(Path())}) if each]
    assert found == [Profile("m", (Step(16, 1, 0.5),))]


def test_a_profile_that_meets_the_end_of_the_memory_tells_where() -> None:
    found = [each for each in measure_profiles({"m": Small(Path())}) if each]
    assert found == [Profile("m", (Step(16, 1, 0.5), Step(32, 2, 0.5)), 32)]


def test_loading_tells_each_percent_once(tmp_path: Path) -> None:
    def load_slowly(*args: object, progress: object, **kwargs: object) -> FakeEngine:
        for done in range(1001):
            progress(done, 1000)  # type: ignore[operator]
        return Counted()

    told: list[ToParent] = []
    spec = Spec((checkpoint(tmp_path, "a"),), "cpu", "auto", load_slowly, keep_default_logs)
    engines = load(spec, told.append)
    assert [message.done for message in told if isinstance(message, Loading)] == list(range(0, 1001, 10))
    assert isinstance(engines["a"], Counted)
    assert engines["a"].num_warm_ups == 1


def test_every_checkpoint_gets_an_engine(tmp_path: Path) -> None:
    checkpoints = (checkpoint(tmp_path, "a"), checkpoint(tmp_path, "b"))
    engines = load(Spec(checkpoints, "cpu", "auto", load_fake, keep_default_logs), lambda message: None)
    assert list(engines) == ["a", "b"]


def test_names() -> None:
    assert replica_names(["cuda:0", "cpu", "cpu"]) == ["cuda:0", "cpu", "cpu#2"]
