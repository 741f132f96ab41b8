"""What crosses the pipe between the parent and a child: ids and numbers, never text, never device tensors."""

from __future__ import annotations

import io
import math
import pickle
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from service.checkpoints.checkpoint import Checkpoint
from service.domain import Encoding, Failure, IdArray, Memory, Output, Readout, Step
from service.errors import StartupError
from service.replicas.canary import Answers
from service.replicas.runner import Load


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


_HEAD = struct.Struct("<Q")
_Built = tuple[Any, tuple[Any, ...]]
"""What pickle makes an object of: a callable and its arguments."""


def frame(message: object) -> bytes:
    """The message as bytes, its length in front."""
    buffer = io.BytesIO()
    buffer.write(bytes(_HEAD.size))
    pickler = pickle.Pickler(buffer, pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = _BUILT
    pickler.dump(message)
    _HEAD.pack_into(view := buffer.getbuffer(), 0, len(view) - _HEAD.size)
    return buffer.getvalue()


class Frames:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The messages that are whole now. Take them all before the next call."""
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
    """The child's end: it waits where the parent's may not."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._stream = self._socket.makefile("rb")

    def send(self, message: object) -> None:
        self._socket.sendall(frame(message))

    def recv(self) -> Any:
        """Raises EOFError when the other end has gone."""
        [size] = _HEAD.unpack(self._read(_HEAD.size))
        return pickle.loads(self._read(size))

    def _read(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) < size:
            raise EOFError
        return data


# rows as flat arrays


def _flat_batch(batch: Batch) -> _Built:
    rows = batch.encodings
    arrays = [array for row in rows for array in (row.ids, row.segment_ids, row.positions)]
    numbers = np.concatenate(arrays, dtype=np.int32).tobytes()
    more = [(row.model, row.readout, row.blocks) for row in rows]
    return _batch_of, (batch.number, list(map(len, arrays)), numbers, more)


def _batch_of(number: int, lengths: list[int], numbers: bytes, more: list[tuple[Any, ...]]) -> Batch:
    arrays = _cut(np.frombuffer(numbers, np.int32), lengths)
    rows = [
        Encoding(model, next(arrays), next(arrays), next(arrays), readout, blocks) for model, readout, blocks in more
    ]
    return Batch(number, rows)


def _flat_result(result: Result) -> _Built:
    given = [output for output in result.outputs if isinstance(output, Output)]
    scores = np.concatenate([output.scores for output in given], axis=None, dtype=np.float32) if given else _NOTHING
    rows = [(each.scores.shape, each.ids) if isinstance(each, Output) else each for each in result.outputs]
    return _result_of, (result.number, scores.tobytes(), rows, result.compute_s, result.fitting_tokens)


def _result_of(
    number: int,
    scores: bytes,
    rows: list[tuple[tuple[int, ...], IdArray | None] | Failure],
    compute_s: float,
    fitting_tokens: int | None,
) -> Result:
    sizes = [math.prod(row[0]) for row in rows if isinstance(row, tuple)]
    arrays = _cut(np.frombuffer(scores, np.float32), sizes)
    outputs = [Output(next(arrays).reshape(row[0]), row[1]) if isinstance(row, tuple) else row for row in rows]
    return Result(number, outputs, compute_s, fitting_tokens)


def _cut(whole: NDArray[Any], lengths: Sequence[int]) -> Iterator[NDArray[Any]]:
    return (whole[start:end] for start, end in pairwise(accumulate(lengths, initial=0)))


def _by_fields(value: object) -> _Built:
    kind = type(value)
    return kind, tuple(getattr(value, name) for name in kind.__match_args__)  # type: ignore[attr-defined]


_NOTHING = np.empty(0, np.float32)
_BUILT: dict[type, Callable[[Any], _Built]] = {
    Batch: _flat_batch,
    Result: _flat_result,
    **dict.fromkeys(get_args(Readout), _by_fields),
}
