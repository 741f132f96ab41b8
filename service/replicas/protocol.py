"""Messages between the parent and a worker process, and their framing.

Only ids and numbers cross the pipe, never text, never device tensors. A message is a length and a pickle in which the
rows of a batch are flat arrays: a dataclass and three arrays per row would be most of the cost of a batch on its way.
"""

from __future__ import annotations

import io
import math
import pickle
import socket
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from service.checkpoints.checkpoint import Checkpoint
from service.domain import Check, Encoding, Failure, IdArray, Memory, Output, Readout, Step
from service.errors import StartupError
from service.replicas.canary import Answers
from service.replicas.runner import Load


@dataclass(frozen=True, slots=True)
class Spec:
    """To the worker process, first: its configuration. The two callables are module functions, or partials of such."""

    checkpoints: tuple[Checkpoint, ...]
    device: str
    precision: str
    load: Load
    set_up_logs: Callable[[], None]
    canary_interval_s: float = 60.0
    are_weights_suspect: bool = False
    """Whether cached weights must be checked completely before they are used."""


@dataclass(frozen=True, slots=True)
class ComputeRequest:
    """To the worker process, any number of times; all rows are of one model."""

    number: int
    encodings: Sequence[Encoding]


@dataclass(frozen=True, slots=True)
class CheckWeights:
    """To the worker process: check the cached weights in use, as another one has found them damaged."""


@dataclass(frozen=True, slots=True)
class Stop:
    """To the worker process: exit after the current batch."""


@dataclass(frozen=True, slots=True)
class Loading:
    """To the parent: `done` of `total` bytes of this model are loaded."""

    model: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Ready:
    """To the parent, once: ready for batches. `precisions` are by model name, `answers` those of the canary.

    `has_found_damage` says that the cached weights were damaged; they were replaced. `left_out` are the kernels of each
    model that failed its self-test.
    """

    precisions: dict[str, str]
    memory_bytes: int
    answers: Answers
    device_memory: Memory
    has_found_damage: bool = False
    left_out: Mapping[str, tuple[Check, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Profile:
    """To the parent, once for each model, after its forwards were measured; `fitting_tokens` as in ComputeResponse."""

    model: str
    steps: tuple[Step, ...]
    fitting_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """To the parent: the canary was run. If `wrong` names a model, the process exits."""

    wrong: str | None
    device_memory: Memory


@dataclass(frozen=True, slots=True)
class Damaged:
    """To the parent: cached weights in use are damaged, and the process exits."""

    model: str


@dataclass(frozen=True, slots=True)
class Broken:
    """To the parent, instead of Ready: the models could not be loaded, and the process exits."""

    error: StartupError


@dataclass(frozen=True, slots=True)
class ComputeResponse:
    """To the parent: the outputs of a batch, in order. `fitting_tokens` as in `BatchResult`."""

    number: int
    outputs: list[Output | Failure]
    compute_s: float
    fitting_tokens: int | None = None


ToChild = Spec | ComputeRequest | CheckWeights | Stop
ToParent = Loading | Ready | Profile | Checked | Damaged | Broken | ComputeResponse


_HEAD = struct.Struct("<Q")
_Reduced = tuple[Any, tuple[Any, ...]]
"""What pickle rebuilds an object from: a callable and its arguments."""


def frame(message: object) -> bytes:
    """The message as bytes, its length in front."""
    buffer = io.BytesIO()
    buffer.write(bytes(_HEAD.size))
    pickler = pickle.Pickler(buffer, pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = _REDUCERS
    pickler.dump(message)
    _HEAD.pack_into(view := buffer.getbuffer(), 0, len(view) - _HEAD.size)
    return buffer.getvalue()


class Frames:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The messages that are complete. Take them all before the next call."""
        self._bytes += data
        start = 0
        while (body := start + _HEAD.size) <= len(self._bytes):
            end = body + _HEAD.unpack_from(self._bytes, start)[0]
            if end > len(self._bytes):
                break
            yield pickle.loads(self._bytes[body:end])
            start = end
        del self._bytes[:start]


class Pipe:
    """The worker process's end, which blocks."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._stream = self._socket.makefile("rb")

    def send(self, message: object) -> None:
        self._socket.sendall(frame(message))

    def recv(self) -> Any:
        """Raises EOFError when the parent has closed its end."""
        [size] = _HEAD.unpack(self._read(_HEAD.size))
        return pickle.loads(self._read(size))

    def _read(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) < size:
            raise EOFError
        return data


# rows as flat arrays


def _reduce_request(batch: ComputeRequest) -> _Reduced:
    rows = batch.encodings
    arrays = [array for row in rows for array in (row.ids, row.segment_ids, row.positions)]
    numbers = np.concatenate(arrays, dtype=np.int32).tobytes()
    more = [(row.model, row.readout, row.blocks) for row in rows]
    return _make_request, (batch.number, list(map(len, arrays)), numbers, more)


def _make_request(number: int, lengths: list[int], numbers: bytes, more: list[tuple[Any, ...]]) -> ComputeRequest:
    arrays = _cut(np.frombuffer(numbers, np.int32), lengths)
    rows = [
        Encoding(model, next(arrays), next(arrays), next(arrays), readout, blocks) for model, readout, blocks in more
    ]
    return ComputeRequest(number, rows)


def _reduce_response(result: ComputeResponse) -> _Reduced:
    given = [output for output in result.outputs if isinstance(output, Output)]
    scores = np.concatenate([output.scores for output in given], axis=None, dtype=np.float32) if given else _NOTHING
    rows = [(each.scores.shape, each.ids) if isinstance(each, Output) else each for each in result.outputs]
    return _make_response, (result.number, scores.tobytes(), rows, result.compute_s, result.fitting_tokens)


def _make_response(
    number: int,
    scores: bytes,
    rows: list[tuple[tuple[int, ...], IdArray | None] | Failure],
    compute_s: float,
    fitting_tokens: int | None,
) -> ComputeResponse:
    sizes = [math.prod(row[0]) for row in rows if isinstance(row, tuple)]
    arrays = _cut(np.frombuffer(scores, np.float32), sizes)
    outputs = [Output(next(arrays).reshape(row[0]), row[1]) if isinstance(row, tuple) else row for row in rows]
    return ComputeResponse(number, outputs, compute_s, fitting_tokens)


def _cut(whole: NDArray[Any], lengths: Sequence[int]) -> Iterator[NDArray[Any]]:
    return (whole[start:end] for start, end in pairwise(accumulate(lengths, initial=0)))


def _reduce_fields(value: object) -> _Reduced:
    kind = type(value)
    return kind, tuple(getattr(value, name) for name in kind.__match_args__)  # type: ignore[attr-defined]


_NOTHING = np.empty(0, np.float32)
_REDUCERS: dict[type, Callable[[Any], _Reduced]] = {
    ComputeRequest: _reduce_request,
    ComputeResponse: _reduce_response,
    **dict.fromkeys(get_args(Readout), _reduce_fields),
}
