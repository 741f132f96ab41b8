"""What crosses the pipe between the parent and a child: ids and numbers, never text, never device tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.checkpoints.checkpoint import Checkpoint
from service.domain import Encoding, Failure, Memory, Output, Step
from service.errors import StartupError
from service.replicas.canary import Answers
from service.replicas.loading import Load


@dataclass(frozen=True, slots=True)
class Spec:
    """First to the child: all that it has to know. The two callables are functions of modules."""

    checkpoints: tuple[Checkpoint, ...]
    device: str
    precision: str
    load: Load
    set_up_logs: Callable[[], None]
    canary_interval_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Batch:
    """To the child, any number of times; all rows are of one model."""

    number: int
    encodings: Sequence[Encoding]


@dataclass(frozen=True, slots=True)
class Stop:
    """To the child: end after the batch at hand."""


@dataclass(frozen=True, slots=True)
class Loading:
    """To the parent: so many bytes of this model are loaded."""

    model: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Ready:
    """To the parent, once: batches may come. `precisions` are by model name, `answers` those of the canary."""

    precisions: dict[str, str]
    memory_bytes: int
    answers: Answers
    device_memory: Memory


@dataclass(frozen=True, slots=True)
class Profile:
    """To the parent, once for each model, when the child had time to measure forwards of it; `fitting_tokens` as in
    Result."""

    model: str
    steps: tuple[Step, ...]
    fitting_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """To the parent: the canary was looked after. If `wrong` names a model, the child ends."""

    wrong: str | None
    device_memory: Memory


@dataclass(frozen=True, slots=True)
class Broken:
    """To the parent, instead of Ready: the models could not be loaded, and the child ends."""

    error: StartupError


@dataclass(frozen=True, slots=True)
class Result:
    """To the parent: a batch's outputs, in order. After running out of memory: so many tokens fit at a time."""

    number: int
    outputs: list[Output | Failure]
    compute_s: float
    fitting_tokens: int | None = None


ToChild = Spec | Batch | Stop
ToParent = Loading | Ready | Profile | Checked | Broken | Result
