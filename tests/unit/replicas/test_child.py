"""The loop of a worker process, run without a process: batches, canary checks, profiles, loading."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread

import pytest

from service.checkpoints.checked_file import DamagedFile
from service.domain import Encoding, Output, Step
from service.errors import DeviceFailure, OutOfMemory
from service.replicas.canary import Canary
from service.replicas.child import Prepared, WeightsWatch, advance, compute, load, measure_profiles, prepare, work
from service.replicas.isolation import MemoryProbe
from service.replicas.pool import keep_default_logs, replica_names
from service.replicas.protocol import Checked, ComputeRequest, ComputeResponse, Loading, Profile, Spec, ToParent
from tests.fakes import BREAK, NAN, POISON, SILENT_BREAK, FakeClock, FakeEngine, checkpoint, load_fake, row
from tests.unit.replicas.engines import CountingEngine, sums


class RecordedPipe:
    """The write end of the pipe; keeps the messages."""

    def __init__(self) -> None:
        self.messages: list[ToParent] = []
        self.has_exited = False

    def send(self, message: ToParent) -> None:
        self.messages.append(message)

    def results(self) -> list[int]:
        return [message.number for message in self.messages if isinstance(message, ComputeResponse)]

    def checks(self) -> list[str | None]:
        return [message.wrong for message in self.messages if isinstance(message, Checked)]


def compute_now(engines: Mapping[str, CountingEngine], batch: ComputeRequest) -> ComputeResponse:
    return compute(engines, prepare(engines, batch), MemoryProbe(), free_since=0.0)


def test_a_batch_is_computed_by_the_engine_of_its_model() -> None:
    first, second = CountingEngine(), CountingEngine()
    result = compute_now({"a": first, "b": second}, ComputeRequest(7, [row(1, 2, model="b")]))
    assert (result.number, sums(result.outputs), result.fitting_tokens) == (7, [3], None)
    assert result.compute_s > 0
    assert (first.sizes, second.sizes) == ([], [1])


class FailingPrepare(CountingEngine):
    """Computes in `prepare`, so that a poisoned row fails there."""

    def prepare(self, encodings: Sequence[Encoding]) -> Callable[[], list[Output]]:
        outputs = self.run(encodings)
        return lambda: outputs


def test_an_error_in_prepare_fails_only_the_row_at_fault() -> None:
    engines = {"m": FailingPrepare()}
    prepared = prepare(engines, ComputeRequest(0, [row(1), row(POISON), row(3)]))
    assert sums(compute(engines, prepared, MemoryProbe(), free_since=0.0).outputs) == [1, "failed", 3]


def test_compute_s_excludes_the_wait_for_the_previous_batch() -> None:
    engines = {"m": CountingEngine()}
    prepared = prepare(engines, ComputeRequest(0, [row(1)]))
    long_ago = replace(prepared, started=prepared.started - 1000)
    assert compute(engines, long_ago, MemoryProbe(), free_since=long_ago.started).compute_s > 1000
    assert compute(engines, long_ago, MemoryProbe(), free_since=prepared.started).compute_s < 1000


def work_through(*batches: list[int], interval_s: float = 0.0, clock: FakeClock | None = None) -> RecordedPipe:
    """Runs the loop over these batches and a stop; returns the messages to the parent."""
    engines = {"m": FakeEngine(Path())}
    canary, pipe = Canary(engines, interval_s, clock or FakeClock()), RecordedPipe()
    queue: SimpleQueue[Prepared | None] = SimpleQueue()
    for number, ids in enumerate(batches):
        queue.put(prepare(engines, ComputeRequest(number, [row(each) for each in ids])))
    queue.put(None)
    try:
        work(engines, canary, WeightsWatch(engines, lambda: None), pipe, queue)
    except DeviceFailure:
        pipe.has_exited = True
    return pipe


def test_work_answers_batches_until_the_stop() -> None:
    pipe = work_through([1], [2, 3])
    assert (pipe.results(), pipe.checks(), pipe.has_exited) == ([0, 1], [], False)


@pytest.mark.parametrize("bad", [POISON, NAN])
def test_a_failed_row_is_followed_by_a_canary_check_before_the_answer(bad: int) -> None:
    pipe = work_through([1, bad], [2])
    kinds = [type(message) for message in pipe.messages if isinstance(message, ComputeResponse | Checked)]
    assert kinds == [Checked, ComputeResponse, ComputeResponse]
    assert pipe.checks() == [None]


def test_a_batch_that_breaks_the_device_is_not_answered() -> None:
    pipe = work_through([1], [BREAK], [2])
    assert (pipe.results(), pipe.checks(), pipe.has_exited) == ([0], ["m"], True)


def test_the_canary_is_checked_between_batches_when_its_interval_has_passed() -> None:
    """The loop reads the clock twice per batch, so a check is due after every third batch."""
    batches = ([1], [2], [3], [4], [SILENT_BREAK], [6], [7], [8])
    pipe = work_through(*batches, interval_s=60.0, clock=TickingClock(10.0))
    assert (pipe.results(), pipe.checks(), pipe.has_exited) == ([0, 1, 2, 3, 4, 5], [None, "m"], True)


class TickingClock(FakeClock):
    """Advances by `step_s` each time it is read."""

    def __init__(self, step_s: float) -> None:
        super().__init__()
        self._step_s = step_s

    def __call__(self) -> float:
        self.now += self._step_s
        return self.now


class UnrecoverableEngine(FakeEngine):
    """Raises DeviceFailure for a row of token 2 and while it is profiled."""

    def run(self, encodings: Sequence[Encoding]) -> list[Output]:
        if encodings[0].ids[0] == 2:
            raise DeviceFailure("never again")
        return super().run(encodings)

    def profile(self) -> Iterator[Step]:
        raise DeviceFailure("never again")
        yield


def test_no_answer_is_sent_after_a_device_failure() -> None:
    engines, pipe = {"m": UnrecoverableEngine(Path())}, RecordedPipe()
    queue: SimpleQueue[Prepared | None] = SimpleQueue()
    queue.put(prepare(engines, ComputeRequest(0, [row(2), row(3)])))
    with pytest.raises(DeviceFailure):
        work(engines, Canary(engines, 0.0), WeightsWatch(engines, lambda: None), pipe, queue)
    assert pipe.messages == []
    with pytest.raises(DeviceFailure):
        compute(engines, prepare(engines, ComputeRequest(0, [row(2), row(3)])), MemoryProbe(), free_since=0.0)


class FakeEngineWithCache(FakeEngine):
    """Its weights come from a file; `is_damaged` says what has become of it."""

    def __init__(self) -> None:
        super().__init__(Path())
        self.is_damaged = False
        self.num_checks = 0
        self.was_checked_before_use = False

    def require_sound_weights(self, share: float = 1.0) -> None:
        self.num_checks += 1
        if self.is_damaged:
            raise DamagedFile("its content is another")

    def replace_damaged_weights(self) -> bool:
        self.was_checked_before_use = True
        return False


def test_damaged_weights_end_the_work_before_another_answer() -> None:
    engine, pipe = FakeEngineWithCache(), RecordedPipe()
    engines = {"sound": FakeEngine(Path()), "m": engine}
    queue: SimpleQueue[Prepared | None] = SimpleQueue()
    watch = WeightsWatch(engines, lambda: queue.put(None))
    assert watch.check()
    queue.put(prepare(engines, ComputeRequest(0, [row(1)])))
    engine.is_damaged = True
    watch.run()
    work(engines, Canary(engines, 0.0), watch, pipe, queue)
    assert watch.damaged == "m"
    assert pipe.results() == []


def test_damaged_weights_end_a_wait_for_batches() -> None:
    engine, pipe = FakeEngineWithCache(), RecordedPipe()
    engines = {"m": engine}
    queue: SimpleQueue[Prepared | None] = SimpleQueue()
    watch = WeightsWatch(engines, lambda: queue.put(None))
    working = Thread(target=work, args=(engines, Canary(engines, 0.0), watch, pipe, queue))
    working.start()
    engine.is_damaged = True
    watch.run()
    working.join(60)
    assert not working.is_alive()


def test_weights_are_checked_at_once_and_whenever_the_parent_wants_it() -> None:
    engine, ended = FakeEngineWithCache(), Event()
    watch = WeightsWatch({"m": engine}, ended.set)
    Thread(target=watch.run, daemon=True).start()
    while engine.num_checks == 0:
        ended.wait(0.01)
    engine.is_damaged = True
    watch.check_soon()
    assert ended.wait(60)


def test_a_check_that_fails_for_lack_of_memory_is_no_damage(caplog: pytest.LogCaptureFixture) -> None:
    class Unreadable(FakeEngine):
        def require_sound_weights(self, share: float = 1.0) -> None:
            raise OSError(errno.ENOMEM, "no memory")

    assert WeightsWatch({"m": Unreadable(Path())}, lambda: None).check()
    assert [record.message for record in caplog.records] == ["weights could not be checked"]


@pytest.mark.parametrize("are_suspect", [True, False])
def test_suspect_weights_are_checked_before_they_are_used(tmp_path: Path, are_suspect: bool) -> None:
    engine = FakeEngineWithCache()
    models = (checkpoint(tmp_path, "a"),)
    spec = Spec(models, "cpu", "auto", lambda *a, **k: engine, keep_default_logs, are_weights_suspect=are_suspect)
    load(spec, lambda message: None)
    assert engine.was_checked_before_use == are_suspect


class FailingProfile(FakeEngine):
    def profile(self) -> Iterator[Step]:
        yield Step(16, 1, 0.5)
        raise RuntimeError("profiling failed")


class ProfileOutOfMemory(FakeEngine):
    def profile(self) -> Iterator[Step]:
        yield from (Step(16, 1, 0.5), Step(32, 2, 0.5))
        raise OutOfMemory("no memory for 64 tokens")


def test_one_forward_is_profiled_between_two_batches() -> None:
    engines = {"m": FakeEngine(Path()), "n": FakeEngine(Path())}
    measuring, pipe = measure_profiles(engines), RecordedPipe()
    batches: SimpleQueue[Prepared | None] = SimpleQueue()
    batches.put(prepare(engines, ComputeRequest(0, [row(1)])))
    num_messages = []
    for _ in range(9):
        advance(measuring, pipe, batches)
        num_messages.append(len(pipe.messages))
    assert num_messages == [0, 0, 0, 1, 1, 1, 1, 2, 2], "each profile is three forwards"
    assert pipe.messages == [Profile(name, tuple(engine.profile())) for name, engine in engines.items()]


def test_every_model_is_profiled_while_no_batch_waits() -> None:
    engines = {"m": FakeEngine(Path()), "n": FakeEngine(Path())}
    pipe = RecordedPipe()
    advance(measure_profiles(engines), pipe, SimpleQueue())
    assert [message.model for message in pipe.messages if isinstance(message, Profile)] == ["m", "n"]


def test_a_failed_profile_keeps_the_steps_before_the_failure() -> None:
    found = [each for each in measure_profiles({"m": FailingProfile(Path())}) if each]
    assert found == [Profile("m", (Step(16, 1, 0.5),))]


def test_a_profile_out_of_memory_reports_the_tokens_that_fit() -> None:
    found = [each for each in measure_profiles({"m": ProfileOutOfMemory(Path())}) if each]
    assert found == [Profile("m", (Step(16, 1, 0.5), Step(32, 2, 0.5)), 32)]


def test_loading_reports_progress_once_per_percent(tmp_path: Path) -> None:
    def load_slowly(*args: object, progress: object, **kwargs: object) -> FakeEngine:
        for done in range(1001):
            progress(done, 1000)  # type: ignore[operator]
        return CountingEngine()

    messages: list[ToParent] = []
    spec = Spec((checkpoint(tmp_path, "a"),), "cpu", "auto", load_slowly, keep_default_logs)
    engines = load(spec, messages.append)
    assert [message.done for message in messages if isinstance(message, Loading)] == list(range(0, 1001, 10))
    assert isinstance(engines["a"], CountingEngine)
    assert engines["a"].num_warm_ups == 1


def test_load_makes_an_engine_per_checkpoint(tmp_path: Path) -> None:
    checkpoints = (checkpoint(tmp_path, "a"), checkpoint(tmp_path, "b"))
    engines = load(Spec(checkpoints, "cpu", "auto", load_fake, keep_default_logs), lambda message: None)
    assert list(engines) == ["a", "b"]


def test_replica_names_are_unique() -> None:
    assert replica_names(["cuda:0", "cpu", "cpu"]) == ["cuda:0", "cpu", "cpu#2"]
