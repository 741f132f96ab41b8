"""Fakes for slow or random parts: rows without text, an engine without torch, a clock that the test sets.

Real worker processes load the fake engine: they import `load_fake` by its name. The first id of a row selects a fault
(below). The output of a row is the sum of its ids, so that a test detects an answer to the wrong request.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry

from service.checkpoints.checkpoint import Checkpoint
from service.checkpoints.shape import Shape
from service.domain import Check, Cls, Encoding, Memory, Output, Step
from service.errors import CheckpointError, OutOfMemory
from service.metrics import Metrics
from service.replicas.runner import Progress

POISON = -1
"""The forward raises for a batch with such a row."""

KILL = -2
"""The process is killed by SIGKILL."""

GATE = -3
"""The forward waits until the named pipe `gate` in the checkpoint's folder is opened for writing."""

THREADS = -4
"""The output is the number of threads that libraries are configured to use."""

NAN = -5
"""The output is NaN."""

HUGE = -6
"""The row runs out of memory, even alone."""

BREAK = -7
"""The output is NaN, and every later output of the engine is wrong."""

EXIT, SEGFAULT = -8, -9
"""The process exits in native code: with status 3, or by a segmentation fault."""

EXHAUST_MEMORY = -10
"""The process allocates memory until the kernel kills it."""

SILENT_BREAK = -11
"""The output is correct, and every later output of the engine is wrong."""

MAX_MEMORY_TOKENS = 20_000
"""A batch of several rows with more tokens runs out of memory; one long row does not."""

SHAPE = Shape(
    num_layers=1,
    hidden_size=1,
    num_heads=1,
    ffn_size=1,
    vocab_size=1,
    max_positions=512,
    num_segments=2,
    norm_eps=1e-12,
    activation="gelu",
)


class FakeClock:
    """A clock in seconds that is set by the test."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class FakeEngine:
    """An engine whose output is the sum of a row's ids, with the faults above."""

    precision = "float32"

    def __init__(self, path: Path, *, is_wrong: bool = False) -> None:
        self._path = path
        self._is_wrong = is_wrong

    def warm_up(self) -> None:
        """No-op."""

    def profile(self) -> Iterator[Step]:
        """0.1 s per token: so slow that the batch budget is the smallest."""
        yield from (Step(10, 1, 1.0), Step(20, 1, 2.0), Step(40, 2, 4.0))

    def canary(self) -> list[list[Encoding]]:
        return [[row(3, 4)]]

    has_found_damage = False
    checks: tuple[Check, ...] = ()

    def replace_damaged_weights(self) -> bool:
        return False

    def require_sound_weights(self, share: float = 1.0) -> None:
        """There is no file."""

    def device_memory(self) -> Memory | None:
        return None

    def prepare(self, encodings: Sequence[Encoding]) -> Callable[[], list[Output]]:
        return lambda: self.run(encodings)

    def run(self, encodings: Sequence[Encoding]) -> list[Output]:
        if len(encodings) > 1 and sum(encoding.num_tokens for encoding in encodings) > MAX_MEMORY_TOKENS:
            raise OutOfMemory("a batch too large")
        for encoding in encodings:
            self._apply_fault(int(encoding.ids[0]))
        return [self._output(encoding) for encoding in encodings]

    def _output(self, encoding: Encoding) -> Output:
        fault = encoding.ids[0]
        if fault == THREADS:
            return threads()
        if fault in (NAN, BREAK):
            return Output(np.full((1, 1), np.nan, dtype=np.float32))
        return Output(total(encoding).scores + (1 if self._is_wrong and fault >= 0 else 0))

    def _apply_fault(self, fault: int) -> None:
        if fault == POISON:
            raise RuntimeError("the forward failed on this row")
        if fault == HUGE:
            raise OutOfMemory("a row too large")
        if fault == GATE:
            pass_gate(self._path)
        if fault in (BREAK, SILENT_BREAK):
            self._is_wrong = True
        if fault in EXITS:
            EXITS[fault]()


def load_fake(checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress) -> FakeEngine:
    for done in range(0, 101, 50):
        progress(done, 100)
    return FakeEngine(checkpoint.path)


def load_without_int8(checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress) -> FakeEngine:
    """An engine whose self-test has left out a kernel."""
    engine = FakeEngine(checkpoint.path)
    engine.checks = (Check("linear", "int8", 0.5, 0.0, "differs"), Check("attention", "sdpa", 0.0, 0.0))
    return engine


def load_and_stop_once(checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress) -> FakeEngine:
    """The second call stops its process during the load."""
    if _count(checkpoint.path) == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
    return FakeEngine(checkpoint.path)


def load_wrong_after_first(checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress) -> FakeEngine:
    """Every engine of a folder but the first computes wrong outputs."""
    mark = checkpoint.path / "first"
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return FakeEngine(checkpoint.path, is_wrong=True)
    return FakeEngine(checkpoint.path)


def load_nothing(checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress) -> FakeEngine:
    raise CheckpointError(f"{checkpoint.path}: no weights")


def load_with_unexpected_error(
    checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress
) -> FakeEngine:
    raise ValueError("an unexpected error")


def load_and_exit(checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress) -> FakeEngine:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def load_once(checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress) -> FakeEngine:
    """The second, third and fourth call fail, so that a replica needs several restarts."""
    if 1 < _count(checkpoint.path) < 5:
        raise CheckpointError(f"{checkpoint.path}: the disk is away")
    return FakeEngine(checkpoint.path)


def _count(path: Path) -> int:
    """The number of calls for this folder, in all processes."""
    tally = path / "tally"
    times = int(tally.read_text()) + 1 if tally.exists() else 1
    tally.write_text(str(times))
    return times


def load_forever(checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress) -> FakeEngine:
    """Waits at the gate, so that the test sees that loading has started, and then for ever."""
    pass_gate(checkpoint.path)
    while True:
        signal.pause()


def exhaust_memory() -> None:
    allocated = []
    while True:
        allocated.append(b"." * 2**23)


EXITS: dict[int, Callable[[], object]] = {
    KILL: lambda: os.kill(os.getpid(), signal.SIGKILL),
    EXIT: lambda: os._exit(3),
    SEGFAULT: lambda: ctypes.string_at(0),
    EXHAUST_MEMORY: exhaust_memory,
}


def pass_gate(path: Path) -> None:
    """Waits until the test calls `open_gate`, which also waits for this call."""
    os.close(os.open(path / "gate", os.O_RDONLY))


def open_gate(path: Path) -> None:
    os.close(os.open(path / "gate", os.O_WRONLY))


def threads() -> Output:
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    return Output(np.array([[int(os.environ["OMP_NUM_THREADS"])]], dtype=np.float32))


def total(encoding: Encoding) -> Output:
    return Output(np.array([[encoding.ids.sum()]], dtype=np.float32))


def row(*ids: int, model: str = "m") -> Encoding:
    array = np.array(ids, dtype=np.int32)
    return Encoding(model, array, np.zeros_like(array), np.arange(len(ids), dtype=np.int32), Cls())


def rows(*lengths: int, model: str = "m") -> list[Encoding]:
    """Rows of these lengths, each with a different first id."""
    return [row(1000 + index, *[1] * (length - 1), model=model) for index, length in enumerate(lengths)]


def checkpoint(path: Path, name: str = "m") -> Checkpoint:
    return Checkpoint(
        name=name,
        source=str(path),
        revision=None,
        path=path,
        family="bert",
        kind="encoder",
        shape=SHAPE,
        labels=(),
        tasks=(),
    )


def make_metrics(models: Sequence[str] = ("m",), replicas: Sequence[str] = ("cpu",)) -> Metrics:
    metrics = Metrics(CollectorRegistry())
    metrics.declare(models=models, replicas=replicas, tasks=("classify",))
    return metrics


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """The value of `erlangshen_NAME` in a scrape."""
    found = metrics.registry.get_sample_value(f"erlangshen_{name}", labels)
    assert found is not None, f"{name}{labels} is not there"
    return found
