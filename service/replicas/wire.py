"""How messages cross the pipe: a length, then a pickle in which the rows of a batch are flat arrays.

A dataclass and three arrays for each row would be most of what a batch costs on its way. Knows no process: the parent
feeds `Frames` with what its event loop reads, the child's `Pipe` waits.
"""

from __future__ import annotations

import io
import math
import pickle
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from service.domain import Encoding, Failure, IdArray, Output, Readout
from service.replicas.messages import Batch, Result

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
