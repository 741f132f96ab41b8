"""Stands in for what is slow or random: rows without text, an engine without torch, a clock that is moved by hand.

The fake engine is loaded by real child processes: `load_fake` is found by its name. It does what a row's first id tells
it to; a row's output is the sum of its ids, so that an answer that went to the wrong caller is seen.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry

from service.checkpoints.checkpoint import Checkpoint, Shape
from service.domain import Cls, Encoding, Memory, Output, Step
from service.errors import CheckpointError, OutOfMemory
from service.metrics import Metrics
from service.replicas.runner import Progress

POISON = -1
"""The forward raises on a batch that holds such a row."""

SUICIDE = -2
"""The process dies of such a row."""

GATE = -3
"""The forward waits until the named pipe `gate` in the checkpoint's folder is opened for writing."""

THREADS = -4
"""The output is the number of threads that libraries are told to use."""

NAN = -5
"""The output is no number."""

HUGE = -6
"""There is no memory for such a row, not even alone."""

BREAK = -7
"""The output is no number, and from then on the device gives wrong ones."""

EXIT, SEGFAULT = -8, -9
"""The process ends amid native code: with a status of its own, or by a signal of its own making."""

EAT = -10
"""The process takes memory until the kernel kills it."""

SILENT_BREAK = -11
"""The output is right, and from then on the device gives wrong ones."""

ROOM_TOKENS = 20_000
"""There is no memory for a batch of more, but for one long row."""

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
    """Seconds that pass when told to."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class FakeEngine:
    """Sums ids."""

    precision = "float32"

    def __init__(self, path: Path, *, is_wrong: bool = False) -> None:
        self._path = path
        self._is_wrong = is_wrong

    def warm_up(self) -> None:
        """Nothing is cold."""

    def profile(self) -> Iterator[Step]:
        """A tenth of a second a token: so slow that a batch is to be as small as can be."""
        yield from (Step(10, 1, 1.0), Step(20, 1, 2.0), Step(40, 2, 4.0))

    def canary(self) -> list[Encoding]:
        return [row(3, 4)]

    def device_memory(self) -> Memory | None:
        return None

    def prepare(self, encodings: Sequence[Encoding]) -> Callable[[], list[Output]]:
        return lambda: self.run(encodings)

    def run(self, encodings: Sequence[Encoding]) -> list[Output]:
        if len(encodings) > 1 and sum(encoding.num_tokens for encoding in encodings) > ROOM_TOKENS:
            raise OutOfMemory("a batch too large")
        for encoding in encodings:
            self._obey(int(encoding.ids[0]))
        return [self._output(encoding) for encoding in encodings]

    def _output(self, encoding: Encoding) -> Output:
        order = encoding.ids[0]
        if order == THREADS:
            return threads()
        if order in (NAN, BREAK):
            return Output(np.full((1, 1), np.nan, dtype=np.float32))
        return Output(total(encoding).scores + (1 if self._is_wrong and order >= 0 else 0))

    def _obey(self, order: int) -> None:
        if order == POISON:
            raise RuntimeError("a row that the forward cannot bear")
        if order == HUGE:
            raise OutOfMemory("a row too large")
        if order == GATE:
            pass_gate(self._path)
        if order in (BREAK, SILENT_BREAK):
            self._is_wrong = True
        if order in DEATHS:
            DEATHS[order]()


def load_fake(checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress) -> FakeEngine:
    for done in range(0, 101, 50):
        progress(done, 100)
    return FakeEngine(checkpoint.path)


def load_and_stop_once(checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress) -> FakeEngine:
    """The second time the process is stopped amid it."""
    if _count(checkpoint.path) == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
    return FakeEngine(checkpoint.path)


def load_wrong_ever_after(checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress) -> FakeEngine:
    """All but the first engine of a folder compute something else."""
    mark = checkpoint.path / "first"
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return FakeEngine(checkpoint.path, is_wrong=True)
    return FakeEngine(checkpoint.path)


def load_nothing(checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress) -> FakeEngine:
    raise CheckpointError(f"{checkpoint.path}: no weights")


def load_badly(checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress) -> FakeEngine:
    raise ValueError("what nobody expected")


def load_and_die(checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress) -> FakeEngine:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def load_once(checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress) -> FakeEngine:
    """The second, third and fourth time it fails: a replica that needs several restarts."""
    if 1 < _count(checkpoint.path) < 5:
        raise CheckpointError(f"{checkpoint.path}: the disk is away")
    return FakeEngine(checkpoint.path)


def _count(path: Path) -> int:
    """How many times it was called with this folder, by whatever process."""
    tally = path / "tally"
    times = int(tally.read_text()) + 1 if tally.exists() else 1
    tally.write_text(str(times))
    return times


def load_forever(checkpoint: Checkpoint, *, device: str, precision: str, progress: Progress) -> FakeEngine:
    """Waits at the gate, which tells whoever opens it that loading has begun, and then for good."""
    pass_gate(checkpoint.path)
    while True:
        signal.pause()


def eat() -> None:
    eaten = []
    while True:
        eaten.append(b"." * 2**23)


DEATHS: dict[int, Callable[[], object]] = {
    SUICIDE: lambda: os.kill(os.getpid(), signal.SIGKILL),
    EXIT: lambda: os._exit(3),
    SEGFAULT: lambda: ctypes.string_at(0),
    EAT: eat,
}


def pass_gate(path: Path) -> None:
    """Waits until the other side opens the gate, which waits for this side."""
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
    """Rows of these lengths, each with an id of its own in front."""
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
    """What a scrape would show for `erlangshen_NAME`."""
    found = metrics.registry.get_sample_value(f"erlangshen_{name}", labels)
    assert found is not None, f"{name}{labels} is not there"
    return found
